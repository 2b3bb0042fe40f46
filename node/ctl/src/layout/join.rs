//! Nodes that are to join: each is asked who it is, and has to belong to no cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use keystore_client::{Layout, Member, NodeState, NodeStatus};

use crate::failure::{Exit, Failure};
use crate::survey::{self, Answer};

/// Asks the nodes at these addresses. All have to answer.
pub(super) async fn ask(
    addresses: &[String],
    layout: &Layout,
    timeout: Duration,
) -> Result<Vec<Answer>, Failure> {
    let asking = addresses.iter().map(|address| survey::ask_one(address.clone(), timeout));
    let mut answers = Vec::new();
    for answer in join_all(asking).await {
        let answer = answer.map_err(|(_, error)| {
            let failure = Failure::from(error);
            let message = format!(
                "every node that is to join has to answer first, nothing was done: {}",
                failure.message
            );
            Failure { message, ..failure }
        })?;
        if let Some((reason, problem)) = unfit(layout, &answer.status) {
            let address = answer.admin.address();
            let message = format!("{} at {address} {problem}; nothing was done", answer.status.name);
            return Err(Failure::new(Exit::Refused, reason, message));
        }
        answers.push(answer);
    }
    let nodes: BTreeSet<_> = answers.iter().map(|answer| answer.status.node).collect();
    match nodes.len() == answers.len() {
        true => Ok(answers),
        false => Err(Failure::usage("two of the addresses to join lead to the same node")),
    }
}

/// Why a node cannot join.
fn unfit(layout: &Layout, status: &NodeStatus) -> Option<(&'static str, String)> {
    let is_member = layout.member(status.node).is_some();
    match status.cluster {
        _ if is_member => {
            let problem = "is a member already: name it in --nodes, without --join".to_owned();
            Some(("ALREADY_MEMBER", problem))
        }
        _ if layout.departed.contains(&status.node) => {
            let problem =
                "has departed from this cluster: start it anew, then it joins as a new node".to_owned();
            Some(("DEPARTED", problem))
        }
        Some(other) if other != layout.cluster => {
            Some(("WRONG_CLUSTER", format!("belongs to another cluster, {other}")))
        }
        Some(_) => Some(("WRONG_CLUSTER", "belongs to this cluster, and is no member".to_owned())),
        None if status.state != NodeState::Uninitialized => {
            Some(("NOT_READY", "belongs to no cluster, and is about to stop".to_owned()))
        }
        None => None,
    }
}

/// As a member in no known zone and of the usual weight.
pub(super) fn member(status: &NodeStatus) -> Member {
    Member {
        node: status.node,
        actor: status.actor,
        name: status.name.clone(),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    }
}
