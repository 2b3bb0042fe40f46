//! Scenarios 5 to 8 and 34: `kubectl scale` up and down under load, also changed half-way and with volumes that were there
//! before. The data moves first, and no request fails. Clients use every node that is there.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use keystore_client::DEFAULT_KEYSPACE;
use keystore_crds::KeyStoreCluster;
use keystore_history::{Key, ReadOutcome};
use kube::ResourceExt;

use super::{Ending, LARGE_TO_MOVE, scale_until_data_moves, wait_for_writes, wait_served_by, write_large};
use crate::harness::ksc::{
    PARTITIONS, REPLICAS, StoreIdentity, expect_settled, identity, manifest, pod_names_of,
};
use crate::harness::layouts::{Moves, holdings, moved, moved_min};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until_promptly};
use crate::load::{Allowance, Load, SCENARIO, Settings, StockClients, Summary};
use crate::store::{ClientStore, Request};

const MOVED_WITHIN: Duration = Duration::from_secs(240);
const WRITES_PER_PHASE: usize = 200;
const WIDE: i32 = 5;
const WIDER: i32 = 6;
/// Enough for records that are moved twice to be seen.
const WRITES_BEFORE: usize = 1000;
const RECORDS_UNDER_WAY: u64 = 300;
const DELETED_KEYS: u64 = 100;
/// What precedes the data.
const JOINING: [&str; 2] = ["StartingPods", "Joining"];
const JOINING_WITHIN: Duration = Duration::from_secs(60);
/// Each partition has its quorum at every moment of a planned change. It takes seconds until a pod that ended is back.
const PLANNED_GAP_MAX: Duration = Duration::from_secs(2);
const SET_ASIDE_BYTES: &str = "keystore_storage_set_aside_bytes";

/// 5: up. That it ends balanced within one partition, in each zone, is part of settling. Where every node holds
/// everything, whatever moves is the least: so it goes up twice.
pub(super) async fn up(sandbox: &Sandbox) -> Result<Ending> {
    let mut before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_service(WIDER).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_BEFORE).await?;
    for replicas in [WIDE, WIDER] {
        before = grow(sandbox, &load, &before, replicas).await?;
    }
    finish(load, 2).await
}

/// Scales up in one move, of as few partitions and records as possible, and says what the store is then.
async fn grow(
    sandbox: &Sandbox,
    load: &Load<ClientStore>,
    before: &StoreIdentity,
    replicas: i32,
) -> Result<StoreIdentity> {
    let held = holdings(&sandbox.layout(before).await?);
    let old: Vec<_> = before.nodes.keys().cloned().collect();
    let records_before = sandbox.records_transferred(&old).await?;
    let after = identity(&scale_and_settle(sandbox, load, replicas).await?)?;
    ensure!(after.cluster_id == before.cluster_id, "the store is another one");
    ensure!(before.nodes.iter().all(|node| after.nodes.get(node.0) == Some(node.1)), "a node is another one");
    let joined = u32::try_from(after.nodes.len() - before.nodes.len())?;
    sandbox.expect_one_move(before, &after, joined).await?;

    let holds = holdings(&sandbox.layout(&after).await?);
    let (moved, least) = (moved(&held, &holds), moved_min(&held, &holds));
    ensure!(moved == least, "{moved} copies of partitions were moved, and {least} would have been enough");
    let records = sandbox.records_transferred(&pod_names_of(replicas)).await? - records_before;
    let records_max = records_max(load.keys(), moved)?;
    ensure!(records <= records_max, "{records} records were moved, for {moved} copies at most {records_max}");
    Ok(after)
}

/// Keys are spread evenly over the partitions; some of their records are written while they move.
fn records_max(keys: usize, partitions_moved: usize) -> Result<u64> {
    let held = keys * partitions_moved / usize::try_from(PARTITIONS)?;
    Ok(u64::try_from(held + held / 5)? + RECORDS_UNDER_WAY)
}

/// 6: down.
pub(super) async fn down(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replicas"] = WIDE.into();
    let before = identity(&sandbox.create_ready(&manifest).await?)?;
    let claims = sandbox.claim_uids().await?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let stock = StockClients::start(sandbox.forward_service().await?, WIDE).await?;
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    wait_served_by(sandbox, &pod_names_of(WIDE)).await?;
    // A pod that went too early would go while data moves: that takes a while.
    write_large(&load, &connected.store, 0..LARGE_TO_MOVE).await?;
    let moved = tokio::select! {
        moved = scale_and_settle(sandbox, &load, REPLICAS) => moved?,
        found = sandbox.watch_pods_that_go(REPLICAS, WIDE) => match found? {},
    };
    sandbox.expect_one_move(&before, &identity(&moved)?, 0).await?;
    ensure!(sandbox.claim_uids().await? == claims, "retained volumes are gone or others");
    finish_both(load, stock, 2).await
}

/// 7: down, and up again in the middle of moving; and once more when the pods already end.
pub(super) async fn down_then_up(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replicas"] = WIDE.into();
    let before = identity(&sandbox.create_ready(&manifest).await?)?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let stock = StockClients::start(sandbox.forward_service().await?, WIDE).await?;
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    wait_served_by(sandbox, &pod_names_of(WIDE)).await?;
    scale_until_data_moves(sandbox, &load, &connected.store, REPLICAS).await?;
    let after = identity(&scale_and_settle(sandbox, &load, WIDE).await?)?;
    expect_turned_back(sandbox, &before, &after).await?;
    scale_until_a_pod_ends(sandbox, REPLICAS).await?;
    scale_and_settle(sandbox, &load, WIDE).await?;
    finish_both(load, stock, 3).await
}

/// Scales down, and returns as soon as a pod was told to end, which still runs.
async fn scale_until_a_pod_ends(sandbox: &Sandbox, replicas: i32) -> Result<()> {
    sandbox.scale(replicas).await?;
    until_promptly("a pod ends", MOVED_WITHIN, || async {
        let pods = sandbox.store_pods().await?;
        let ends = pods.iter().any(|pod| pod.metadata.deletion_timestamp.is_some());
        Ok(if ends { Look::Done(()) } else { Look::NotYet(format!("{} pods stay", pods.len())) })
    })
    .await
}

/// 8: up, and down again while the new nodes join, and once more while data moves to them.
pub(super) async fn up_then_down(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    scale_until_nodes_join(sandbox, WIDE).await?;
    let again = identity(&scale_and_settle(sandbox, &load, REPLICAS).await?)?;
    // The last word may come when data has just begun to move.
    let moves = sandbox.moves_between(&before, &again).await?;
    let is_turned_back = |moves: &Moves| moves.finished == 0 && moves.begun == moves.aborted;
    ensure!(moves.values().all(is_turned_back), "the moves were {moves:?}");

    scale_until_data_moves(sandbox, &load, &connected.store, WIDE).await?;
    let after = identity(&scale_and_settle(sandbox, &load, REPLICAS).await?)?;
    expect_turned_back(sandbox, &again, &after).await?;
    finish(load, 3).await
}

/// Scales up, and returns before the new nodes have joined.
async fn scale_until_nodes_join(sandbox: &Sandbox, replicas: i32) -> Result<()> {
    sandbox.scale(replicas).await?;
    until_promptly("nodes join", JOINING_WITHIN, || async {
        let operation = sandbox.ksc().await?.status.and_then(|status| status.operation);
        let phase = operation.map(|operation| operation.phase);
        let joins = phase.as_deref().is_some_and(|phase| JOINING.contains(&phase));
        Ok(if joins { Look::Done(()) } else { Look::NotYet(format!("the phase is {phase:?}")) })
    })
    .await
}

/// One move began and was turned back. A node that was late may have seen nothing of it.
async fn expect_turned_back(sandbox: &Sandbox, before: &StoreIdentity, after: &StoreIdentity) -> Result<()> {
    let moves = sandbox.moves_between(before, after).await?;
    let mut seen = moves.values().map(|moves| (moves.begun, moves.aborted, moves.finished));
    let is_right = seen.clone().any(|of_node| of_node == (1, 1, 0))
        && seen.all(|of_node| matches!(of_node, (1, 1, 0) | (0, 0, 0)));
    ensure!(is_right, "no single move was turned back: {moves:?}");
    Ok(())
}

/// 34: up, down, up again with the volumes of before, while keys are deleted.
pub(super) async fn with_old_volumes(sandbox: &Sandbox) -> Result<Ending> {
    sandbox.create_ready(&manifest()).await?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let keys: Vec<_> =
        (0..DELETED_KEYS).map(|n| Key::new(DEFAULT_KEYSPACE, format!("deleted-{n}").as_bytes())).collect();
    ask_all(&load, &connected.store, &keys, &Request::put("to be deleted")).await?;
    let wide = identity(&scale_and_settle(sandbox, &load, WIDE).await?)?;
    scale_and_settle(sandbox, &load, REPLICAS).await?;
    ask_all(&load, &connected.store, &keys, &Request::delete()).await?;
    let again = identity(&scale_and_settle(sandbox, &load, WIDE).await?)?;
    let set_aside = sandbox.node_metric(SET_ASIDE_BYTES).await?;
    for pod in pod_names_of(WIDE).split_off(REPLICAS.try_into()?) {
        ensure!(wide.nodes.get(&pod) != again.nodes.get(&pod), "{pod} has joined as the node that it was");
        // Others may have healed what it should not have used: what it holds does not tell whether it did.
        let bytes = set_aside.get(&pod).copied().unwrap_or_default();
        ensure!(bytes > 0, "{pod} has set nothing aside of what was on its disk");
        expect_deleted(sandbox, pod, &keys).await?;
    }
    finish(load, 4).await
}

/// Asks one node alone for what it holds itself.
async fn expect_deleted(sandbox: &Sandbox, pod: String, keys: &[Key]) -> Result<()> {
    let through = sandbox.connect_store_through(std::slice::from_ref(&pod)).await?;
    for key in keys {
        let read = through.store.get_at_one(key).await;
        ensure!(read == ReadOutcome::Missing, "{key:?} at {pod}: {read:?}");
    }
    Ok(())
}

async fn ask_all(
    load: &Load<ClientStore>,
    store: &ClientStore,
    keys: &[Key],
    request: &Request,
) -> Result<()> {
    for key in keys {
        let reply = load.recorder().ask(SCENARIO, store, key, request).await;
        ensure!(reply.is_done(), "{request:?} of {key:?}: {reply:?}");
    }
    Ok(())
}

/// Scales, and waits until all is as it should be with so many nodes; then clients have to get a good deal more done.
async fn scale_and_settle(
    sandbox: &Sandbox,
    load: &Load<ClientStore>,
    replicas: i32,
) -> Result<KeyStoreCluster> {
    sandbox.scale(replicas).await?;
    let ksc = sandbox.wait_ksc("settled", MOVED_WITHIN, expect_settled).await?;
    let pods: BTreeSet<_> = sandbox.store_pods().await?.iter().map(ResourceExt::name_any).collect();
    ensure!(pods == pod_names_of(replicas).into_iter().collect(), "the pods are {pods:?}");
    wait_served_by(sandbox, &pod_names_of(replicas)).await?;
    wait_for_writes(load, WRITES_PER_PHASE).await?;
    Ok(ksc)
}

async fn finish(load: Load<ClientStore>, phases: usize) -> Result<Ending> {
    Ok(Ending::Passed(judge(load, phases).await?.to_string()))
}

/// The same, where pods have gone that clients were connected to.
async fn finish_both(load: Load<ClientStore>, stock: StockClients, phases: usize) -> Result<Ending> {
    let stock = stock.stop().await?;
    Ok(Ending::Passed(format!("{}; {stock}", judge(load, phases).await?)))
}

async fn judge(load: Load<ClientStore>, phases: usize) -> Result<Summary> {
    let report = load.stop().await;
    let summary =
        report.judge(Allowance::NoFailure, phases * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    ensure!(summary.longest_gap <= PLANNED_GAP_MAX, "nothing was served for too long: {summary}");
    Ok(summary)
}
