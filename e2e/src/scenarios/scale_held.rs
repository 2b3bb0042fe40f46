//! Scenario 9: a number of replicas below the replication factor, by `kubectl scale`, is held: nothing moves, the reason is
//! in the conditions, and setting it back needs nothing else.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use keystore_crds::{ConditionType, KeyStoreCluster};

use super::Ending;
use crate::harness::ksc::{
    NAME, REPLICAS, REPLICATION_FACTOR, condition, expect_condition, expect_whole, identity, manifest,
    pod_names,
};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::throughout;
use crate::load::{Allowance, Load, Settings};

const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// Long enough for several looks of the operator.
const HELD_FOR: Duration = Duration::from_secs(10);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    for wanted in [1, 2] {
        sandbox.scale(wanted).await?;
        let is_held = |ksc: &KeyStoreCluster| {
            expect_condition(ksc, ConditionType::Stalled, "True", "BelowReplicationFactor")?;
            expect_condition(ksc, ConditionType::Ready, "False", "Held")?;
            expect_condition(ksc, ConditionType::Available, "True", "QuorumAvailable")
        };
        let ksc = sandbox.wait_ksc("held", NOTICED_WITHIN, is_held).await?;
        let message = condition(&ksc, ConditionType::Stalled)
            .map(|stalled| stalled.message.clone())
            .unwrap_or_default();
        ensure!(
            message.contains(&REPLICATION_FACTOR.to_string()),
            "the message does not say what to set it to: {message}"
        );
        throughout("nothing moves", HELD_FOR, || expect_unmoved(sandbox)).await?;
    }
    sandbox.scale(REPLICAS).await?;
    let ksc = sandbox.wait_ksc("whole again", NOTICED_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    let summary = load.stop().await.judge(Allowance::NoFailure, 100).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

async fn expect_unmoved(sandbox: &Sandbox) -> Result<()> {
    let set = sandbox.api::<StatefulSet>().get(NAME).await?;
    let replicas = set.spec.and_then(|spec| spec.replicas);
    ensure!(replicas == Some(REPLICAS), "the StatefulSet has {replicas:?} replicas");
    let pods: Vec<_> = sandbox.store_pods().await?.iter().map(kube::ResourceExt::name_any).collect();
    ensure!(pods == pod_names(), "the pods are {pods:?}");
    Ok(())
}
