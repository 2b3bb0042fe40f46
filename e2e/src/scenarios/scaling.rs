//! Scenarios 5 to 8 and 34: `kubectl scale` up and down under load, also changed half-way and with volumes that were there
//! before. The data moves first, and no request fails.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use keystore_client::DEFAULT_KEYSPACE;
use keystore_crds::KeyStoreCluster;
use keystore_history::{Key, ReadOutcome};
use kube::ResourceExt;

use super::{Ending, scale_until_data_moves, wait_for_writes};
use crate::harness::ksc::{REPLICAS, expect_settled, identity, manifest, pod_names_of};
use crate::harness::sandbox::Sandbox;
use crate::load::{Allowance, Load, SCENARIO, Settings};
use crate::store::{ClientStore, Request};

const MOVED_WITHIN: Duration = Duration::from_secs(240);
const WRITES_PER_PHASE: usize = 200;
const WIDE: i32 = 5;
const DELETED_KEYS: u64 = 100;

/// 5: up.
pub(super) async fn up(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    let moved = scale_and_settle(sandbox, &load, WIDE).await?;
    let after = identity(&moved)?;
    ensure!(after.cluster_id == before.cluster_id, "the store is another one");
    ensure!(before.nodes.iter().all(|node| after.nodes.get(node.0) == Some(node.1)), "a node is another one");
    finish(load, 2).await
}

/// 6: down.
pub(super) async fn down(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replicas"] = WIDE.into();
    sandbox.create_ready(&manifest).await?;
    let claims = sandbox.claim_uids().await?;
    // Through nodes that stay.
    let connected = sandbox.connect_store_through(&pod_names_of(REPLICAS)).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    scale_and_settle(sandbox, &load, REPLICAS).await?;
    ensure!(sandbox.claim_uids().await? == claims, "retained volumes are gone or others");
    finish(load, 2).await
}

/// 7: down, and up again in the middle of moving.
pub(super) async fn down_then_up(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replicas"] = WIDE.into();
    sandbox.create_ready(&manifest).await?;
    reversed(sandbox, WIDE, REPLICAS).await
}

/// 8: up, and down again in the middle of joining.
pub(super) async fn up_then_down(sandbox: &Sandbox) -> Result<Ending> {
    sandbox.create_ready(&manifest()).await?;
    reversed(sandbox, REPLICAS, WIDE).await
}

async fn reversed(sandbox: &Sandbox, from: i32, towards: i32) -> Result<Ending> {
    let connected = sandbox.connect_store_through(&pod_names_of(REPLICAS)).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    scale_until_data_moves(sandbox, &load, &connected.store, towards).await?;
    scale_and_settle(sandbox, &load, from).await?;
    finish(load, 2).await
}

/// 34: up, down, up again with the volumes of before, while keys are deleted.
pub(super) async fn with_old_volumes(sandbox: &Sandbox) -> Result<Ending> {
    sandbox.create_ready(&manifest()).await?;
    let connected = sandbox.connect_store_through(&pod_names_of(REPLICAS)).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let keys: Vec<_> =
        (0..DELETED_KEYS).map(|n| Key::new(DEFAULT_KEYSPACE, format!("deleted-{n}").as_bytes())).collect();
    ask_all(&load, &connected.store, &keys, &Request::put("to be deleted")).await?;
    let wide = identity(&scale_and_settle(sandbox, &load, WIDE).await?)?;
    scale_and_settle(sandbox, &load, REPLICAS).await?;
    ask_all(&load, &connected.store, &keys, &Request::delete()).await?;
    let again = identity(&scale_and_settle(sandbox, &load, WIDE).await?)?;
    for pod in pod_names_of(WIDE).split_off(REPLICAS.try_into()?) {
        ensure!(wide.nodes.get(&pod) != again.nodes.get(&pod), "{pod} has joined as the node that it was");
    }
    for key in &keys {
        let read = connected.store.get_at_one(key).await;
        ensure!(!matches!(read, ReadOutcome::Found(_)), "{key:?} is back: {read:?}");
    }
    finish(load, 4).await
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
    wait_for_writes(load, WRITES_PER_PHASE).await?;
    Ok(ksc)
}

async fn finish(load: Load<ClientStore>, phases: usize) -> Result<Ending> {
    let report = load.stop().await;
    let summary =
        report.judge(Allowance::NoFailure, phases * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}
