//! `init`: makes a cluster of nodes that belong to none, outside Kubernetes.
//!
//! Nothing is sent before every named node has answered: unreachable is never uninitialised. An init that was
//! interrupted is finished by running it again, with the layout that some nodes have accepted already; asking for
//! another one is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keystore_client::init::{Plan, plan};
use keystore_client::{ClusterId, KeyspaceMode, Layout, NodeState, PartitionCount};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::args::{Globals, InitArgs, Output};
use crate::failure::{Exit, Failure};
use crate::output::{print_json, print_line};
use crate::survey::{self, Answer, Survey};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Nodes find each other by gossip before they can serve.
const SERVING_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn init(globals: &Globals, args: &InitArgs) -> Result<(), Failure> {
    if globals.cluster.is_some() {
        return Err(Failure::usage("on Kubernetes the operator initialises a cluster: init takes no -c"));
    }
    let survey = survey::ask(globals).await?;
    check_all_answered(&survey, globals.admin_endpoints().len())?;
    let known: BTreeSet<ClusterId> =
        survey.answers.iter().filter_map(|answer| answer.status.cluster).collect();
    let (layout, is_new) = match known.len() {
        0 => (plan_first(args, &survey.answers)?, true),
        1 => (as_asked(args, survey.layout_of_cluster().await?)?, false),
        _ => return Err(refused("the nodes belong to different clusters; nothing was done")),
    };
    check_members(&layout, &survey.answers)?;
    let all_have_it = survey.answers.iter().all(|answer| answer.status.cluster.is_some());
    for answer in survey.answers.iter().filter(|answer| answer.status.cluster.is_none()) {
        answer.admin.init(&layout).await?;
    }
    wait_until_serving(&survey.answers).await?;
    let id = layout.cluster.to_string();
    match globals.output {
        Output::Json => print_json(&serde_json::json!({"clusterId": id, "initialized": !all_have_it})),
        Output::Table => print_line(&match (is_new, all_have_it) {
            (true, _) => format!("cluster {id} initialised with {} nodes", layout.members.len()),
            (false, false) => format!("cluster {id} was half initialised, now it serves"),
            (false, true) => format!("cluster {id} is initialised already"),
        }),
    }
}

fn refused(message: &str) -> Failure {
    Failure::new(Exit::Refused, "WRONG_CLUSTER", message)
}

fn check_all_answered(survey: &Survey, named: usize) -> Result<(), Failure> {
    if let Some((_, error)) = survey.unanswered.first() {
        let failure = Failure::from(error.clone());
        let message = format!("every node has to answer first, nothing was done: {}", failure.message);
        return Err(Failure { message, ..failure });
    }
    if survey.answers.len() < named {
        return Err(Failure::usage("two of the admin endpoints lead to the same node"));
    }
    Ok(())
}

/// Each keyspace that is named, once.
fn keyspaces_of(args: &InitArgs) -> Result<BTreeMap<String, KeyspaceMode>, Failure> {
    let mut keyspaces = BTreeMap::new();
    for (name, mode) in &args.keyspaces {
        if keyspaces.insert(name.clone(), *mode).is_some() {
            return Err(Failure::usage(format!("the keyspace {name} is named twice; nothing was done")));
        }
    }
    Ok(keyspaces)
}

/// The layout that is there already, unless something else is asked for: none of this can be changed.
fn as_asked(args: &InitArgs, layout: Layout) -> Result<Layout, Failure> {
    let keyspaces = keyspaces_of(args)?;
    let missing = keyspaces.iter().find(|(name, mode)| layout.keyspaces.get(*name) != Some(mode));
    let problem = match (args.replication_factor, args.partitions, missing) {
        (Some(asked), ..) if usize::from(asked) != layout.replication_factor => {
            format!("replication factor {}", layout.replication_factor)
        }
        (_, Some(asked), _) if asked != u32::from(layout.partitions.get()) => {
            format!("{} partitions", layout.partitions.get())
        }
        (_, _, Some((name, _))) => match layout.keyspaces.get(name) {
            Some(_) => format!("a keyspace {name} of another mode"),
            None => format!("no keyspace {name}"),
        },
        _ => return Ok(layout),
    };
    Err(refused(&format!(
        "cluster {} is initialised already, with {problem}; nothing was done",
        layout.cluster
    )))
}

fn plan_first(args: &InitArgs, answers: &[Answer]) -> Result<Layout, Failure> {
    let wanted = Plan {
        cluster: ClusterId(Uuid::new_v4().into_bytes()),
        incarnation: Uuid::new_v4().as_u64_pair().0,
        partitions: PartitionCount::new(args.partitions.unwrap_or(256))
            .map_err(|error| Failure::usage(error.to_string()))?,
        replication_factor: usize::from(args.replication_factor.unwrap_or(3)),
        keyspaces: keyspaces_of(args)?,
    };
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status.clone()).collect();
    plan(wanted, &statuses).map_err(|error| Failure::usage(error.to_string()))
}

/// A node that belongs to no cluster can only be given a layout that names it.
fn check_members(layout: &Layout, answers: &[Answer]) -> Result<(), Failure> {
    match answers.iter().find(|answer| layout.member(answer.status.node).is_none()) {
        Some(answer) => Err(refused(&format!(
            "cluster {} exists and {} at {} is no member of it; nothing was done",
            layout.cluster,
            answer.status.name,
            answer.admin.address()
        ))),
        None => Ok(()),
    }
}

async fn wait_until_serving(answers: &[Answer]) -> Result<(), Failure> {
    let deadline = Instant::now() + SERVING_TIMEOUT;
    for answer in answers {
        while answer.admin.get_status().await?.state != NodeState::Serving {
            if Instant::now() > deadline {
                let problem =
                    format!("{} has accepted the layout but does not serve yet", answer.status.name);
                return Err(Failure::new(Exit::Other, "NOT_SERVING", problem));
            }
            sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}
