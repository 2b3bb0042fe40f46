//! Scenario 14: two operators run, and the one that leads is killed in the middle of a rollout; the other goes on where
//! it was, and nothing is done twice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use keystore_crds::KeyStoreCluster;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{NAME, expect_whole, identity, manifest, pod_names};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::versions::{differences, versions};
use crate::harness::wait::{Look, throughout, until};
use crate::load::{Allowance, Load, Settings};

/// The pod that a rollout begins with.
const FIRST: &str = "demo-2";
const ROLLED_WITHIN: Duration = Duration::from_secs(180);
/// Long enough for another leader to look at everything.
const UNMOVED_FOR: Duration = Duration::from_secs(10);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let operator = Operator::new(sandbox.client.clone());
    operator.scale(sandbox, 2).await?;
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    // On one stream to each node, which has to outlive the rollout as well as single calls do.
    let load = Load::start(connected.store.in_session(), Settings::default());
    wait_for_writes(&load, 200).await?;

    let first = uid(sandbox, FIRST).await?;
    let patch = Patch::Merge(json!({"spec": {"config": {"log": {"level": "debug"}}}}));
    sandbox.api::<KeyStoreCluster>().patch(NAME, &PatchParams::default(), &patch).await?;
    until("the rollout has begun", ROLLED_WITHIN, || async {
        let pod = sandbox.api::<Pod>().get_opt(FIRST).await?;
        let is_gone = pod.is_none_or(|pod| pod.metadata.uid.as_ref() != Some(&first));
        Ok(if is_gone { Look::Done(()) } else { Look::NotYet(format!("{FIRST} is the old one")) })
    })
    .await?;
    operator.restart(&DeleteParams::default().grace_period(0)).await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    let ksc = sandbox.wait_ksc("whole", ROLLED_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    for pod in pod_names() {
        let made = times_made(sandbox, &pod).await?;
        ensure!(
            made == 2,
            "{pod} was made {made} times, by the creation and by one rollout it would be twice"
        );
    }

    // And where there is nothing to do, another leader does nothing.
    let at_rest = sandbox.wait_at_rest().await?;
    operator.restart(&DeleteParams::default().grace_period(0)).await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    throughout("nothing is written", UNMOVED_FOR, || async {
        let now = versions(sandbox).await?;
        ensure!(now == at_rest, "changed: {}", differences(&at_rest, &now));
        Ok(())
    })
    .await?;
    let summary = load.stop().await.judge(Allowance::NoFailure, 400).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

async fn uid(sandbox: &Sandbox, pod: &str) -> Result<String> {
    sandbox.api::<Pod>().get(pod).await?.metadata.uid.context("a pod without a UID")
}

/// How often the StatefulSet says that it has made this pod.
async fn times_made(sandbox: &Sandbox, pod: &str) -> Result<i32> {
    let selector = ListParams::default().fields("involvedObject.kind=StatefulSet,reason=SuccessfulCreate");
    let events = sandbox.api::<Event>().list(&selector).await?.items;
    let speaks_of_it = format!("create Pod {pod} in StatefulSet");
    let ours =
        events.iter().filter(|event| event.message.as_deref().unwrap_or("").starts_with(&speaks_of_it));
    Ok(ours.map(|event| event.count.unwrap_or(1)).sum())
}
