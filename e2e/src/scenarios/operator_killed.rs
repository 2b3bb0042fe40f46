//! Scenario 12: the operator is killed at every boundary between two phases of a scale, up and down, and each time that a
//! rollout has replaced a pod. It goes on where it was: each scale is one move, which is never turned back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use keystore_crds::KeyStoreCluster;
use kube::ResourceExt;
use kube::api::{DeleteParams, WatchEvent, WatchParams};
use tokio::time::timeout;

use super::{Ending, wait_for_writes, wait_served_by};
use crate::harness::ksc::{
    NAME, REPLICAS, expect_settled, identity, manifest, pod_names, pod_names_of, status,
};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until_promptly};
use crate::load::{Allowance, Load, Settings};

const WIDE: i32 = 4;
/// Within which the next phase begins; another operator leads after some 20 s.
const NEXT_PHASE_WITHIN: Duration = Duration::from_secs(180);
const WRITES_PER_PHASE: usize = 200;
/// What no run misses; other phases may be over before the operator is dead.
const PHASES: [&str; 2] = ["StartingPods", "Moving"];
const BOUNDARIES_MIN: usize = 4;

/// The epoch and the phase.
type Boundary = (Option<i64>, String);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let operator = Operator::new(sandbox.client.clone());
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    let mut killed_at = Vec::new();
    let mut seen = before.clone();
    for (replicas, joined) in [(WIDE, 1), (REPLICAS, 0)] {
        sandbox.scale(replicas).await?;
        killed_at.extend(kill_at_boundaries(sandbox, &operator).await?);
        let pods: Vec<_> = sandbox.store_pods().await?.iter().map(ResourceExt::name_any).collect();
        ensure!(pods == pod_names_of(replicas), "the pods are {pods:?}");
        let now = identity(&sandbox.ksc().await?)?;
        sandbox.expect_one_move(&seen, &now, joined).await?;
        seen = now;
        wait_served_by(sandbox, &pods).await?;
        wait_for_writes(&load, WRITES_PER_PHASE).await?;
    }
    for phase in PHASES {
        ensure!(killed_at.iter().any(|(_, at)| at == phase), "{phase} was not seen, but {killed_at:?}");
    }
    ensure!(killed_at.len() >= BOUNDARIES_MIN, "only {killed_at:?} were seen");
    roll(sandbox, &operator).await?;
    let ksc = sandbox.wait_ksc("settled", NEXT_PHASE_WITHIN, expect_settled).await?;
    ensure!(identity(&ksc)?.nodes == before.nodes, "the nodes are others");
    let summary =
        load.stop().await.judge(Allowance::NoFailure, 3 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(format!("killed {} times; {summary}", killed_at.len() + pod_names().len())))
}

/// Kills the operator whenever the status tells of a phase that it has not told of before, until all is settled. What a
/// dying operator still told is nothing to kill its successor for.
async fn kill_at_boundaries(sandbox: &Sandbox, operator: &Operator) -> Result<Vec<Boundary>> {
    let mut killed_at = Vec::new();
    let mut seen = BTreeSet::new();
    loop {
        let wait = next_boundary(sandbox, &seen);
        let next = timeout(NEXT_PHASE_WITHIN, wait).await.context("no phase follows")??;
        let Some(reached) = next else { return Ok(killed_at) };
        operator.restart(&DeleteParams::default().grace_period(0)).await?;
        seen.extend(boundary(&sandbox.ksc().await?));
        seen.insert(reached.clone());
        killed_at.push(reached);
    }
}

/// Watches, since a phase may be over in no time; `None` once all is settled.
async fn next_boundary(sandbox: &Sandbox, seen: &BTreeSet<Boundary>) -> Result<Option<Boundary>> {
    let mut now = sandbox.ksc().await?;
    let only = WatchParams::default().fields(&format!("metadata.name={NAME}"));
    let version = now.resource_version().context("a resource without a version")?;
    let mut changes = sandbox.api::<KeyStoreCluster>().watch(&only, &version).await?.boxed();
    loop {
        if expect_settled(&now).is_ok() {
            return Ok(None);
        }
        if let Some(boundary) = boundary(&now).filter(|boundary| !seen.contains(boundary)) {
            return Ok(Some(boundary));
        }
        now = match changes.try_next().await?.context("the watch has ended")? {
            WatchEvent::Added(ksc) | WatchEvent::Modified(ksc) => ksc,
            WatchEvent::Deleted(_) => bail!("the resource is gone"),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => bail!("the watch has failed: {error}"),
        };
    }
}

fn boundary(ksc: &KeyStoreCluster) -> Option<Boundary> {
    let status = status(ksc).ok()?;
    Some((status.epoch, status.operation.as_ref()?.phase.clone()))
}

/// Changes the configuration, and kills the operator each time that a pod has been replaced.
async fn roll(sandbox: &Sandbox, operator: &Operator) -> Result<()> {
    let pods = sandbox.api::<Pod>();
    let mut old = Vec::new();
    for pod in pod_names().into_iter().rev() {
        let uid = sandbox.pod_uid(&pod).await?;
        old.push((pod, uid));
    }
    sandbox.begin_rollout().await?;
    for (pod, uid) in old {
        until_promptly(format!("{pod} is replaced"), NEXT_PHASE_WITHIN, || async {
            let now = pods.get_opt(&pod).await?.and_then(|pod| pod.metadata.uid);
            let is_replaced = now.is_some_and(|now| now != uid);
            Ok(if is_replaced { Look::Done(()) } else { Look::NotYet("it is the old one".into()) })
        })
        .await?;
        operator.restart(&DeleteParams::default().grace_period(0)).await?;
    }
    Ok(())
}
