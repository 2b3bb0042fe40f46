//! Scenario 18: every pod is killed at once under load; the store forms again by itself, as it was, with all its data.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{expect_whole, identity, manifest, pod_names};
use crate::harness::sandbox::Sandbox;
use crate::load::{Allowance, Load, Settings};
use crate::store::REQUEST_TIMEOUT;

const BACK_WITHIN: Duration = Duration::from_secs(120);
const WRITES_PER_PHASE: usize = 300;
/// Within which the store has to serve again, from the moment that it is killed.
const AWAY_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let mut load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    let pods = sandbox.api::<Pod>();
    let uids = try_join_all(pod_names().into_iter().map(async |pod| {
        let uid = pods.get(&pod).await?.metadata.uid.context("a pod without a UID")?;
        Ok::<_, anyhow::Error>((pod, uid))
    }))
    .await?;
    load.note_fault();
    // Without a grace period: the processes are killed where they stand.
    let at_once = DeleteParams::default().grace_period(0);
    try_join_all(uids.iter().map(|(pod, _)| pods.delete(pod, &at_once))).await?;
    for (pod, uid) in &uids {
        sandbox.wait_pod_ready(pod, Some(uid), BACK_WITHIN).await?;
    }
    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    let after = identity(&ksc)?;
    ensure!(after == before, "the store was {before:?} and is {after:?}");
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    // Nobody can be served meanwhile: how long that is, is what counts.
    let allowance = Allowance::AfterFaults { within: AWAY_MAX + REQUEST_TIMEOUT, failures_max: usize::MAX };
    let summary = load.stop().await.judge(allowance, 2 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    ensure!(summary.longest_gap <= AWAY_MAX, "nothing was served for too long: {summary}");
    Ok(Ending::Passed(summary.to_string()))
}
