//! Scenario 2: a store of one node with one copy works, and draining its machine ends: the pod goes when asked, the
//! store is away meanwhile, and comes back with everything.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use keystore_crds::{ConditionType, KeyStoreCluster};

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{expect_condition, expect_whole, identity, manifest, pod_names_of};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, Settings};

const ONLY_POD: &str = "demo-0";
/// How long a drain may take: the budget, the node's own drain, the grace period.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
const BACK_WITHIN: Duration = Duration::from_secs(120);
const WRITES: usize = 200;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replicas"] = 1.into();
    manifest["spec"]["replicationFactor"] = 1.into();
    let ksc = sandbox.create_ready(&manifest).await?;
    expect_whole(&ksc).map_err(anyhow::Error::msg)?;
    let before = identity(&ksc)?;
    let connected = sandbox.connect_store_through(&pod_names_of(1)).await?;
    let settings = Settings { write_quorum: 1, ..Settings::default() };
    let mut load = Load::start(connected.store.clone(), settings);
    wait_for_writes(&load, WRITES).await?;

    load.note_fault();
    let machine = drain(sandbox).await?;
    // The volume is on the cordoned machine, so nothing serves until it is given back, and the status says so.
    let is_away = |ksc: &KeyStoreCluster| {
        expect_condition(ksc, ConditionType::Degraded, "True", "NodeDown")?;
        // Nobody is left whom the operator could ask.
        expect_condition(ksc, ConditionType::Available, "Unknown", "NodesUnreachable")
    };
    sandbox.wait_ksc("known to be away", BACK_WITHIN, is_away).await?;
    sandbox.uncordon(&machine).await?;
    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    wait_for_writes(&load, WRITES).await?;

    // While the only node is away every request fails, and there are many of them.
    let away = DRAINED_WITHIN + 2 * BACK_WITHIN;
    let allowance = Allowance::AfterFaults { within: away, failures_max: usize::MAX };
    let summary = load.stop().await.judge(allowance, 2 * WRITES).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

/// What `kubectl drain` does to the pod and its machine, whose name is returned.
async fn drain(sandbox: &Sandbox) -> Result<String> {
    let pods = sandbox.api::<Pod>();
    let uid = sandbox.pod_uid(ONLY_POD).await?;
    let machine = sandbox.place(ONLY_POD).await?.machine;
    sandbox.cordon(&machine).await?;
    until("the pod may be evicted", DRAINED_WITHIN, || async {
        let is_evicted = sandbox.evict(ONLY_POD).await?;
        Ok(if is_evicted { Look::Done(()) } else { Look::NotYet("its budget forbids it".into()) })
    })
    .await?;
    until("the drain ends", DRAINED_WITHIN, || async {
        let left = pods.get_opt(ONLY_POD).await?.and_then(|pod| pod.metadata.uid);
        Ok(if left.as_ref() == Some(&uid) { Look::NotYet("the pod is there".into()) } else { Look::Done(()) })
    })
    .await?;
    Ok(machine)
}
