//! `recover`: lets the members that are left go on without those that are lost for good, where too few are left to decide
//! on that themselves.
//!
//! Whoever is neither named lost nor answers stops it: unreachable is never lost. All that are left are given the same
//! layout; they serve once each has accepted it. An attempt that was interrupted is finished by running it again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keystore_client::{
    Attempt, Layout, Left, Losses, Member, NodeId, NodeState, NodeStatus, Partition, plan_attempt,
};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::args::{Globals, Output, RecoverArgs};
use crate::failure::{Exit, Failure};
use crate::layout::steps::find_all;
use crate::output::{print_json, print_line};
use crate::survey::{self, Answer, Survey};

const POLL_INTERVAL: Duration = Duration::from_millis(100);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Those that are left have to find each other under the new incarnation.
const SERVING_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn recover(globals: &Globals, args: &RecoverArgs) -> Result<(), Failure> {
    let survey = survey::ask_all(globals).await?;
    let newest = survey.layout_of_cluster().await?;
    let named = find_all(&newest.members, &args.lost)?;
    let accepted = find_all(&newest.members, &args.accept_in_doubt)?;
    let left = survivors(&survey, &newest, &named)?;
    let losses = Losses { nodes: named, doubted: doubts(&left, &newest, &accepted).await? };
    let next = match plan(&left, &losses).await? {
        Attempt::InForce => return report(globals.output, &Outcome::of(&newest, true)),
        Attempt::GoOn(layout) | Attempt::Begin { layout, .. } => layout,
    };
    // One that has accepted an attempt without these may be none of them any more.
    let is_left = |answer: &&Answer| next.member(answer.status.node).is_some_and(|member| !member.is_lost);
    let left: Vec<_> = left.into_iter().filter(is_left).collect();
    if args.yes {
        for answer in left.iter().filter(|answer| answer.status.incarnation != next.incarnation) {
            answer.admin.recover(&next).await.map_err(|error| {
                let failure = Failure::from(error);
                let name = &answer.status.name;
                let message =
                    format!("{name} has not accepted; run it again once it can: {}", failure.message);
                Failure { message, ..failure }
            })?;
        }
        wait_until_serving(&left, &next, globals.given_timeout.unwrap_or(SERVING_TIMEOUT)).await?;
    }
    report(globals.output, &Outcome::of(&next, args.yes))
}

fn refused(reason: &str, message: impl Into<String>) -> Failure {
    Failure::new(Exit::Refused, reason, format!("{}; nothing was done", message.into()))
}

/// Everybody who is not lost: each has to answer, and nobody who is lost may.
fn survivors<'a>(
    survey: &'a Survey,
    layout: &Layout,
    named: &BTreeSet<NodeId>,
) -> Result<Vec<&'a Answer>, Failure> {
    let answer = |member: &Member| survey.answers.iter().find(|answer| answer.status.node == member.node);
    let mut left = Vec::new();
    for member in &layout.members {
        let name = &member.name;
        match (member.is_lost || named.contains(&member.node), answer(member)) {
            (true, None) => {}
            (false, Some(answer)) if answer.status.cluster == Some(layout.cluster) => left.push(answer),
            (false, Some(_)) => {
                return Err(refused("WRONG_CLUSTER", format!("{name} does not belong to this cluster")));
            }
            (true, Some(_)) if named.contains(&member.node) => {
                let message = format!("{name} is named lost, and answers: stop it first, for good");
                return Err(refused("NODE_ALIVE", message));
            }
            (true, Some(_)) => {}
            (false, None) => {
                let message = format!(
                    "{name} ({}) gives no answer and is not named lost: give its --admin-endpoint, or name it with --lost",
                    member.node
                );
                return Err(refused("NODE_SILENT", message));
            }
        }
    }
    Ok(left)
}

/// What those that are left may have lost some of; an error if somebody is in doubt who is not to count.
async fn doubts(
    left: &[&Answer],
    layout: &Layout,
    accepted: &BTreeSet<NodeId>,
) -> Result<BTreeMap<NodeId, BTreeSet<Partition>>, Failure> {
    let mut doubts = BTreeMap::new();
    for answer in left {
        let Some((_, _, doubted)) = answer.admin.what_is_left().await? else { continue };
        let (node, name) = (answer.status.node, &answer.status.name);
        if !doubted.is_empty() && !accepted.contains(&node) {
            let message = format!(
                "{name} is in doubt of keys in {} of {} partitions: let it heal, or take what it has with --accept-in-doubt {name}",
                doubted.len(),
                layout.partitions.get()
            );
            return Err(refused("IN_DOUBT", message));
        }
        doubts.insert(node, doubted);
    }
    Ok(doubts)
}

/// What is to be done, by the layouts that those have accepted that are left.
async fn plan(left: &[&Answer], losses: &Losses) -> Result<Attempt, Failure> {
    let mut layouts = Vec::new();
    for answer in left {
        layouts.extend(answer.admin.get_layout().await?);
    }
    let left: Vec<_> =
        layouts.iter().map(|(layout, is_serving)| Left { layout, is_serving: *is_serving }).collect();
    plan_attempt(&left, losses, Uuid::new_v4().as_u64_pair().0)
        .map_err(|error| refused("RECOVERY_REFUSED", error.to_string()))
}

async fn wait_until_serving(left: &[&Answer], layout: &Layout, timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    for answer in left {
        let admin = answer.admin.with_timeout(ANSWER_TIMEOUT);
        loop {
            let status = admin.get_status().await;
            let serves = |status: &NodeStatus| {
                status.state == NodeState::Serving && status.incarnation == layout.incarnation
            };
            if status.as_ref().is_ok_and(serves) {
                break;
            }
            if Instant::now() > deadline {
                let problem = match status {
                    Ok(_) => {
                        "has accepted, and does not serve yet: not all that are left have said that they have"
                            .to_owned()
                    }
                    Err(error) => Failure::from(error).message,
                };
                let problem = format!("{}: {problem}", answer.status.name);
                return Err(Failure::new(Exit::Other, "NOT_SERVING", problem));
            }
            sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    done: bool,
    incarnation: u64,
    epoch: u64,
    left: Vec<String>,
    lost: Vec<String>,
    partitions: u16,
    /// Of which too few replicas are left, or can be trusted.
    salvaged: usize,
    /// Of these, those of which nothing is left.
    gone: usize,
}

impl Outcome {
    fn of(layout: &Layout, done: bool) -> Self {
        let names = |is_lost: bool| {
            let members = layout.members.iter().filter(|member| member.is_lost == is_lost);
            let mut names: Vec<_> = members.map(|member| member.name.clone()).collect();
            names.sort_unstable();
            names
        };
        Self {
            done,
            incarnation: layout.incarnation.number,
            epoch: layout.epoch.0,
            left: names(false),
            lost: names(true),
            partitions: layout.partitions.get(),
            salvaged: layout.salvaged.len(),
            gone: layout.salvaged.values().filter(|sources| sources.is_empty()).count(),
        }
    }

    fn text(&self) -> String {
        let Self { done, incarnation, epoch, left, lost, partitions, salvaged, gone } = self;
        let lost = if lost.is_empty() { "nobody".to_owned() } else { lost.join(", ") };
        let mut lines = vec![format!(
            "incarnation {incarnation}, epoch {epoch}: {} {} without {lost}",
            left.join(", "),
            if *done { "go on" } else { "would go on" }
        )];
        let sole = salvaged - gone;
        lines.push(match salvaged {
            0 => format!("each of {partitions} partitions has a quorum that can be trusted"),
            _ => format!(
                "of {partitions} partitions, {} have a quorum that can be trusted; {sole} have less, and what is left of \
                 them is merged; of {gone} nothing is left",
                usize::from(*partitions) - salvaged
            ),
        });
        lines.push(match (done, salvaged) {
            (false, _) => "nothing was done: --yes does it".to_owned(),
            (true, 0) => "all of them serve".to_owned(),
            (true, _) => {
                "all of them serve; what is merged counts bit by bit: layout propose --finish --wait"
                    .to_owned()
            }
        });
        lines.join("\n")
    }
}

fn report(output: Output, outcome: &Outcome) -> Result<(), Failure> {
    match output {
        Output::Json => print_json(outcome),
        Output::Table => print_line(&outcome.text()),
    }
}
