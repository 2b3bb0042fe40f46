//! Scenario 15: pods die under load, one in order and one at once, and rejoin as the nodes that they were.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{expect_whole, identity, manifest};
use crate::harness::sandbox::Sandbox;
use crate::load::{Allowance, Load, Settings};
use crate::store::{ClientStore, REQUEST_TIMEOUT};

const BACK_WITHIN: Duration = Duration::from_secs(120);
/// What each phase has to get done for the run to mean anything.
const WRITES_PER_PHASE: usize = 300;
/// How long the store may serve nobody when a node dies.
const GAP_MAX: Duration = Duration::from_secs(5);
/// Each client may have one request under way when a pod dies, and one more runs into the same dead connection.
const FAILURES_PER_CLIENT: usize = 2;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let settings = Settings::default();
    let mut load = Load::start(connected.store.clone(), settings);
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    // In order: the node drains, and no request may fail.
    delete_pod(sandbox, &load, "demo-1", &DeleteParams::default()).await?;
    // At once, as if the process had been killed.
    load.note_fault();
    delete_pod(sandbox, &load, "demo-2", &DeleteParams::default().grace_period(0)).await?;

    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    let after = identity(&ksc)?;
    ensure!(after == before, "the store was {before:?} and is {after:?}");
    let clients = usize::try_from(settings.clients)?;
    let allowance =
        Allowance::AfterFaults { within: REQUEST_TIMEOUT, failures_max: clients * FAILURES_PER_CLIENT };
    let summary = load.stop().await.judge(allowance, 3 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    ensure!(summary.longest_gap <= GAP_MAX, "nothing was served for too long: {summary}");
    Ok(Ending::Passed(summary.to_string()))
}

/// Deletes a pod and goes on until its successor serves and clients have written a good deal more.
async fn delete_pod(
    sandbox: &Sandbox,
    load: &Load<ClientStore>,
    name: &str,
    params: &DeleteParams,
) -> Result<()> {
    let pods = sandbox.api::<Pod>();
    let uid = pods.get(name).await?.metadata.uid.context("a pod without a UID")?;
    pods.delete(name, params).await?;
    sandbox.wait_pod_ready(name, Some(&uid), BACK_WITHIN).await?;
    sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    wait_for_writes(load, WRITES_PER_PHASE).await
}
