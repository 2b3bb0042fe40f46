//! The scenarios, as a list. Each is a file of its own; a new one is added here and nowhere else.
//!
//! A scenario gets a namespace, says what it does and fails with the first thing that is not as it should be.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt;
use futures::future::BoxFuture;
use keystore_client::DEFAULT_KEYSPACE;
use keystore_crds::LayoutPhase;
use keystore_history::Key;

use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until, until_promptly};
use crate::load::{Load, SCENARIO};
use crate::store::{ClientStore, Request, Store};

mod create;
mod single_node;
mod bad_manifests;
mod idle;
mod two_operators;
mod pod_deleted;
mod all_pods_killed;
mod resource_deleted;
mod namespace_deleted;
mod scaled_by_hand;
mod children_changed;
mod network_cut;
mod siblings;
mod scale_held;
mod no_space;
mod stale_markers;
mod operator_killed;
mod operator_away;
mod machine_lost;
mod empty_volume;
mod operator_restart;
mod corrected;
mod scaling;
mod autoscaled;

/// Within which a load gets something done.
const WRITES_WITHIN: Duration = Duration::from_secs(90);

/// How long the store may serve nobody when a node dies.
const GAP_MAX: Duration = Duration::from_secs(5);

/// How a scenario ended that found nothing wrong.
pub enum Ending {
    /// With a sentence of figures, for people.
    Passed(String),
    /// What the cluster lacks.
    Skipped(String),
}

#[derive(Clone, Copy)]
pub struct Scenario {
    /// The number that it has in the project's list of scenarios; none for those beside it.
    pub number: Option<u32>,
    pub name: &'static str,
    pub shows: &'static str,
    /// Part of every run; the others take turns.
    pub is_core: bool,
    pub deadline: Duration,
    pub run: for<'a> fn(&'a Sandbox) -> BoxFuture<'a, Result<Ending>>,
}

const SCENARIOS: [Scenario; 28] = [
    Scenario {
        number: Some(1),
        name: "create",
        shows: "three nodes come up, every partition has its owners, and the store serves from outside and inside",
        is_core: true,
        deadline: Duration::from_secs(300),
        run: |sandbox| create::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(2),
        name: "single-node",
        shows: "a store of one node works, and draining its machine ends",
        is_core: false,
        deadline: Duration::from_secs(360),
        run: |sandbox| single_node::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(3),
        name: "bad-manifests",
        shows: "the API server refuses what cannot work, with a sentence that says what to change",
        is_core: true,
        deadline: Duration::from_secs(60),
        run: |sandbox| bad_manifests::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(4),
        name: "idle",
        shows: "nothing is written to Kubernetes while nothing happens",
        is_core: false,
        deadline: Duration::from_secs(300),
        run: |sandbox| idle::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(5),
        name: "scale-up",
        shows: "kubectl scale to five, then six: new nodes join, no more data moves than has to, and no request fails",
        is_core: true,
        deadline: Duration::from_secs(600),
        run: |sandbox| scaling::up(sandbox).boxed(),
    },
    Scenario {
        number: Some(6),
        name: "scale-down",
        shows: "kubectl scale to three: the data moves first, then pods go, and volumes stay",
        is_core: false,
        deadline: Duration::from_secs(480),
        run: |sandbox| scaling::down(sandbox).boxed(),
    },
    Scenario {
        number: Some(7),
        name: "down-then-up",
        shows: "scaled down, and up again in the middle of moving, and while pods end: it ends as was said last",
        is_core: false,
        deadline: Duration::from_secs(480),
        run: |sandbox| scaling::down_then_up(sandbox).boxed(),
    },
    Scenario {
        number: Some(8),
        name: "up-then-down",
        shows: "scaled up, and down again in the middle of joining, and of moving: it ends as was said last",
        is_core: false,
        deadline: Duration::from_secs(600),
        run: |sandbox| scaling::up_then_down(sandbox).boxed(),
    },
    Scenario {
        number: Some(33),
        name: "autoscaled",
        shows: "a HorizontalPodAutoscaler adds nodes under load and takes them away after it, and no request fails",
        is_core: false,
        deadline: Duration::from_secs(900),
        run: |sandbox| autoscaled::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(34),
        name: "old-volumes",
        shows: "up, down and up again with the volumes of before: nothing deleted returns, old disks join as new nodes",
        is_core: false,
        deadline: Duration::from_secs(720),
        run: |sandbox| scaling::with_old_volumes(sandbox).boxed(),
    },
    Scenario {
        number: Some(14),
        name: "two-operators",
        shows: "the operator that leads is killed in a rollout and in a scale, another one goes on, and nothing is done twice",
        is_core: false,
        deadline: Duration::from_secs(720),
        run: |sandbox| two_operators::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(15),
        name: "pod-deleted",
        shows: "a pod deleted under load rejoins as the same node, and no acknowledged write is lost",
        is_core: true,
        deadline: Duration::from_secs(420),
        run: |sandbox| pod_deleted::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(18),
        name: "all-pods-killed",
        shows: "every pod killed at once: the store forms again by itself, with all its data",
        is_core: true,
        deadline: Duration::from_secs(360),
        run: |sandbox| all_pods_killed::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(25),
        name: "resource-deleted",
        shows: "volumes outlive the resource, the same manifest adopts them, and a slow pod starts no new store",
        is_core: true,
        deadline: Duration::from_secs(480),
        run: |sandbox| resource_deleted::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(27),
        name: "namespace-deleted",
        shows: "deleting the namespace finishes, in use and in the middle of creation, without an error",
        is_core: false,
        deadline: Duration::from_secs(300),
        run: |sandbox| namespace_deleted::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(29),
        name: "scaled-by-hand",
        shows: "a StatefulSet that somebody scales is put back, down and up, and the store stays what it was",
        is_core: false,
        deadline: Duration::from_secs(420),
        run: |sandbox| scaled_by_hand::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(31),
        name: "children-changed",
        shows: "owned objects that are deleted or edited are put back, whatever their labels say",
        is_core: true,
        deadline: Duration::from_secs(420),
        run: |sandbox| children_changed::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(32),
        name: "network-cut",
        shows: "nodes cut off from each other: the minority refuses, the majority serves, all converge",
        is_core: true,
        deadline: Duration::from_secs(420),
        run: |sandbox| network_cut::run(sandbox).boxed(),
    },
    Scenario {
        number: None,
        name: "siblings",
        shows: "twenty clients write with one context through different nodes, and none of their values is lost",
        is_core: true,
        deadline: Duration::from_secs(300),
        run: |sandbox| siblings::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(9),
        name: "scale-held",
        shows: "a number of replicas below the replication factor is held with a reason, and raising it needs nothing else",
        is_core: false,
        deadline: Duration::from_secs(300),
        run: |sandbox| scale_held::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(10),
        name: "no-space",
        shows: "a scale-down onto nodes that have no room for the data is held with a reason, and nothing moves",
        is_core: false,
        deadline: Duration::from_secs(600),
        run: |sandbox| no_space::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(11),
        name: "stale-markers",
        shows: "labels, annotations and an old status that somebody planted change nothing",
        is_core: false,
        deadline: Duration::from_secs(600),
        run: |sandbox| stale_markers::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(12),
        name: "operator-killed",
        shows: "the operator killed at every boundary of a scale and of a rollout: it goes on where it was",
        is_core: false,
        deadline: Duration::from_secs(1200),
        run: |sandbox| operator_killed::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(13),
        name: "operator-away",
        shows: "the operator away while the spec is edited: it catches up, and the store never notices",
        is_core: false,
        deadline: Duration::from_secs(600),
        run: |sandbox| operator_away::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(35),
        name: "machine-lost",
        shows: "a machine lost for good while data moves: its nodes are given up, and all copies are made again",
        is_core: false,
        deadline: Duration::from_secs(900),
        run: |sandbox| machine_lost::run(sandbox).boxed(),
    },
    Scenario {
        number: Some(16),
        name: "empty-volume",
        shows: "a pod that returns with an empty volume is replaced by a new node, filled from the others",
        is_core: false,
        deadline: Duration::from_secs(480),
        run: |sandbox| empty_volume::run(sandbox).boxed(),
    },
    Scenario {
        number: None,
        name: "operator-restart",
        shows: "an operator that restarts writes nothing, and the store never notices",
        is_core: false,
        deadline: Duration::from_secs(360),
        run: |sandbox| operator_restart::run(sandbox).boxed(),
    },
    Scenario {
        number: None,
        name: "corrected",
        shows: "a store that is created with a mistake names it, and starts once it is corrected",
        is_core: false,
        deadline: Duration::from_secs(300),
        run: |sandbox| corrected::run(sandbox).boxed(),
    },
];

/// How many of those that take turns are part of one run.
const DRAWN: usize = 2;

pub fn all() -> Vec<Scenario> {
    SCENARIOS.to_vec()
}

/// Part of every run.
pub fn core() -> Vec<Scenario> {
    SCENARIOS.into_iter().filter(|scenario| scenario.is_core).collect()
}

/// The core and, of the others, a few that depend on `hash` alone.
pub fn rotation(hash: &str) -> Vec<Scenario> {
    let (mut chosen, others): (Vec<_>, Vec<_>) = SCENARIOS.into_iter().partition(|scenario| scenario.is_core);
    let start = usize::try_from(fnv1a(hash) % others.len().max(1) as u64).unwrap_or(0);
    chosen.extend(others.into_iter().cycle().skip(start).take(DRAWN));
    chosen
}

/// By name or number.
pub fn named(name: &str) -> Option<Scenario> {
    let number = name.parse().ok();
    SCENARIOS
        .into_iter()
        .find(|scenario| scenario.name == name || (number.is_some() && scenario.number == number))
}

/// Goes on until that many more writes have been acknowledged.
async fn wait_for_writes<S: Store>(load: &Load<S>, more: usize) -> Result<()> {
    let wanted = load.acknowledged() + more;
    until(format!("{more} more writes are acknowledged"), WRITES_WITHIN, || async {
        let count = load.acknowledged();
        Ok(if count >= wanted { Look::Done(()) } else { Look::NotYet(format!("{count} of {wanted}")) })
    })
    .await
}

/// Waits until each of these pods has done requests of clients.
async fn wait_served_by(sandbox: &Sandbox, pods: &[String]) -> Result<()> {
    until("every node has served clients", WRITES_WITHIN, || async {
        let done = sandbox.requests_done().await?;
        let serves = |pod: &String| done.get(pod).is_some_and(|done| *done > 0);
        Ok(if pods.iter().all(serves) { Look::Done(()) } else { Look::NotYet(format!("{done:?}")) })
    })
    .await
}

const LARGE_BYTES: usize = 256 << 10;
/// So many that a move of what they are part of takes some seconds, at the pace at which nodes move data.
const LARGE_TO_MOVE: u64 = 200;
const MOVING_WITHIN: Duration = Duration::from_secs(180);

/// Writes large values, each under a key of its own.
async fn write_large(load: &Load<ClientStore>, store: &ClientStore, numbers: Range<u64>) -> Result<()> {
    let value = "x".repeat(LARGE_BYTES);
    for number in numbers {
        let key = Key::new(DEFAULT_KEYSPACE, format!("large-{number}").as_bytes());
        let reply = load.recorder().ask(SCENARIO, store, &key, &Request::put(value.as_str())).await;
        ensure!(reply.is_done(), "value {number}: {reply:?}");
    }
    Ok(())
}

/// Scales, and returns while data moves.
async fn scale_until_data_moves(
    sandbox: &Sandbox,
    load: &Load<ClientStore>,
    store: &ClientStore,
    replicas: i32,
) -> Result<()> {
    write_large(load, store, 0..LARGE_TO_MOVE).await?;
    sandbox.scale(replicas).await?;
    until_promptly("data moves", MOVING_WITHIN, || async {
        let phase = sandbox.ksc().await?.status.and_then(|status| status.layout_phase);
        let moves = phase == Some(LayoutPhase::Joint);
        Ok(if moves { Look::Done(()) } else { Look::NotYet(format!("the phase is {phase:?}")) })
    })
    .await
}

/// FNV-1a: small, and the same on every machine.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_numbers_are_unique() {
        let names: BTreeSet<_> = all().iter().map(|scenario| scenario.name).collect();
        let numbers: Vec<_> = all().iter().filter_map(|scenario| scenario.number).collect();
        assert_eq!(names.len(), all().len());
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
        for scenario in all() {
            assert_eq!(named(scenario.name).unwrap().name, scenario.name);
        }
        assert_eq!(named("25").unwrap().name, "resource-deleted");
        assert!(named("no such").is_none());
    }

    #[test]
    fn a_rotation_is_the_core_and_a_few_others_each_of_which_has_its_turn() {
        let mut drawn = BTreeSet::new();
        for commit in 0..100 {
            let chosen: Vec<_> = rotation(&commit.to_string()).iter().map(|scenario| scenario.name).collect();
            let again: Vec<_> = rotation(&commit.to_string()).iter().map(|scenario| scenario.name).collect();
            assert_eq!(chosen, again, "the same hash draws the same");
            assert_eq!(chosen.len(), core().len() + DRAWN);
            assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len(), "none twice");
            assert!(core().iter().all(|scenario| chosen.contains(&scenario.name)));
            drawn.extend(chosen);
        }
        assert_eq!(drawn.len(), all().len());
    }
}
