//! Scenario 18: every pod is killed at once under load; the store forms again by itself, as it was, with all its data.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{StoreIdentity, expect_whole, identity, is_ready, manifest};
use crate::harness::machines::Host;
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
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

    load.note_fault();
    delete_all(sandbox).await?;
    wait_as_before(sandbox, &before).await?;
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    // A pod that is deleted is asked to stop first, if not for long. A process that is killed hears nothing.
    let host = Host::find(sandbox).await?;
    if let Some(host) = &host {
        load.note_fault();
        kill_all(sandbox, host).await?;
        wait_as_before(sandbox, &before).await?;
        wait_for_writes(&load, WRITES_PER_PHASE).await?;
    }

    // Nobody can be served meanwhile: how long that is, is what counts.
    let allowance = Allowance::AfterFaults { within: AWAY_MAX + REQUEST_TIMEOUT, failures_max: usize::MAX };
    let summary = load.stop().await.judge(allowance, 2 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    ensure!(summary.longest_gap <= AWAY_MAX, "nothing was served for too long: {summary}");
    let how = if host.is_some() { "deleted and killed" } else { "deleted; killing needs host access" };
    Ok(Ending::Passed(format!("{how}; {summary}")))
}

/// Without a grace period.
async fn delete_all(sandbox: &Sandbox) -> Result<()> {
    let pods = sandbox.api::<Pod>();
    let before = sandbox.pod_uids().await?;
    let at_once = DeleteParams::default().grace_period(0);
    try_join_all(before.keys().map(|pod| pods.delete(pod, &at_once))).await?;
    for (pod, uid) in &before {
        sandbox.wait_pod_ready(pod, Some(uid), BACK_WITHIN).await?;
    }
    Ok(())
}

/// The pods stay and their containers are started again.
async fn kill_all(sandbox: &Sandbox, host: &Host) -> Result<()> {
    let uids: Vec<_> = sandbox.pod_uids().await?.into_values().collect();
    host.kill(&uids)?;
    until("every container was started again", BACK_WITHIN, || async {
        let pods = sandbox.store_pods().await?;
        let is_back = |pod: &&Pod| is_ready(pod) && restarts(pod) > 0;
        let back = pods.iter().filter(is_back).count();
        Ok(if back == uids.len() { Look::Done(()) } else { Look::NotYet(format!("{back} were")) })
    })
    .await
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().map(|container| container.restart_count).sum()
}

async fn wait_as_before(sandbox: &Sandbox, before: &StoreIdentity) -> Result<()> {
    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    let after = identity(&ksc)?;
    ensure!(after == *before, "the store was {before:?} and is {after:?}");
    Ok(())
}
