//! Scenario 25: the resource is deleted and its volumes stay; the same manifest takes them up again, and while an old
//! pod is slow to start nothing new is initialised.
//!
//! One pod is kept from starting by a pod that it must not share a machine with, on the machine that its volume is
//! tied to. Letting go of it is deleting that pod.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use keystore_crds::KeyStoreCluster;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{NAME, StoreIdentity, expect_whole, identity, manifest, pod_names, status};
use crate::harness::sandbox::Sandbox;
use crate::harness::volumes::schedulable_machines;
use crate::harness::wait::{Look, throughout, until};
use crate::load::{Allowance, Load, Report, Settings};

const GONE_WITHIN: Duration = Duration::from_secs(120);
const BACK_WITHIN: Duration = Duration::from_secs(180);
/// Long enough for several looks of the operator.
const SLOW_FOR: Duration = Duration::from_secs(15);
const BLOCKER: &str = "blocker";
const BLOCKER_LABEL: &str = "e2e-blocker";

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    if schedulable_machines(sandbox.client.clone()).await? < pod_names().len() {
        return Ok(Ending::Skipped("needs three machines".into()));
    }
    let manifest = manifest_that_yields();
    let before = identity(&sandbox.create_ready(&manifest).await?)?;
    let claims = sandbox.claim_uids().await?;
    ensure!(claims.len() == pod_names().len(), "the claims are {claims:?}");
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, 500).await?;
    let report = load.stop().await;
    report.judge(Allowance::NoFailure, 500).map_err(anyhow::Error::msg)?;

    let slow = slow_pod(sandbox).await?;
    delete_resource(sandbox).await?;
    ensure!(sandbox.claim_uids().await? == claims, "the claims did not stay as they were");

    let Some((slow, machine)) = slow else {
        return Ok(Ending::Skipped("needs volumes tied to machines".into()));
    };
    block(sandbox, &machine).await?;
    sandbox.create_ksc(&manifest).await.context("the same manifest is refused")?;
    let is_adopted = |ksc: &KeyStoreCluster| expect_adopted(ksc, &before);
    sandbox.wait_ksc("known again without the slow pod", BACK_WITHIN, is_adopted).await?;
    // The operator knows the store again as soon as one node answers; the other may still be starting.
    let both_answer = || async { expect_old_store(sandbox, &before, &slow).await.map(Look::Done) };
    until("the nodes that are not slow answer", BACK_WITHIN, both_answer).await?;
    throughout("nothing new is initialised", SLOW_FOR, || expect_old_store(sandbox, &before, &slow)).await?;

    sandbox.api::<Pod>().delete(BLOCKER, &DeleteParams::default().grace_period(0)).await?;
    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    let after = identity(&ksc)?;
    ensure!(after == before, "the store was {before:?} and is {after:?}");
    ensure!(sandbox.claim_uids().await? == claims, "the claims were not taken up again");
    let found = read_again(sandbox, report).await?;
    Ok(Ending::Passed(format!("{found} keys as they were, {slow} was the slow one")))
}

/// A store whose pods keep away from the blocker, from the start: the manifest has to be the same later.
fn manifest_that_yields() -> Value {
    let mut manifest = manifest();
    manifest["spec"]["podTemplate"] = json!({"spec": {"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {BLOCKER_LABEL: "yes"}},
            "topologyKey": "kubernetes.io/hostname",
        }],
    }}}});
    manifest
}

/// A pod that is alone on a machine to which its volume is tied, and that machine.
async fn slow_pod(sandbox: &Sandbox) -> Result<Option<(String, String)>> {
    let mut machines = Vec::new();
    for pod in pod_names() {
        if let Some(machine) = sandbox.machine_of_volume(&pod).await? {
            machines.push((pod, machine));
        }
    }
    let is_alone = |machine: &String| machines.iter().filter(|(_, other)| other == machine).count() == 1;
    Ok(machines.iter().rev().find(|(_, machine)| is_alone(machine)).cloned())
}

async fn delete_resource(sandbox: &Sandbox) -> Result<()> {
    sandbox.delete::<KeyStoreCluster>(NAME).await?;
    sandbox.wait_gone::<KeyStoreCluster>(NAME, GONE_WITHIN).await?;
    for pod in pod_names() {
        sandbox.wait_gone::<Pod>(&pod, GONE_WITHIN).await?;
    }
    Ok(())
}

/// It need not run, only to be scheduled: its image does not exist and is never asked for.
async fn block(sandbox: &Sandbox, machine: &str) -> Result<()> {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": BLOCKER, "labels": {BLOCKER_LABEL: "yes"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": machine},
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "blocker",
                "image": "keystore.dev/no-such-image:none",
                "imagePullPolicy": "Never",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))?;
    let pods = sandbox.api::<Pod>();
    pods.create(&PostParams::default(), &pod).await.context("the blocker is refused")?;
    until("the blocker has its machine", GONE_WITHIN, || async {
        let assigned = pods.get(BLOCKER).await?.spec.and_then(|spec| spec.node_name);
        Ok(if assigned.is_some() { Look::Done(()) } else { Look::NotYet("it has none".into()) })
    })
    .await
}

/// The old store, as far as the status goes; it may lack the slow node, but never have another one.
fn expect_adopted(ksc: &KeyStoreCluster, before: &StoreIdentity) -> Result<(), String> {
    let status = status(ksc)?;
    if status.cluster_id.is_none() || status.epoch.is_none() {
        return Err("the status does not name a store".into());
    }
    if (status.cluster_id.as_ref(), status.epoch) != (Some(&before.cluster_id), Some(before.epoch)) {
        return Err(format!("the status names {:?} at epoch {:?}", status.cluster_id, status.epoch));
    }
    let is_known = |node: &keystore_crds::NodeStatus| before.nodes.get(&node.pod) == node.node_id.as_ref();
    match status.nodes.iter().find(|node| node.node_id.is_some() && !is_known(node)) {
        Some(stranger) => Err(format!("a node that the store did not have: {stranger:?}")),
        None => Ok(()),
    }
}

async fn expect_old_store(sandbox: &Sandbox, before: &StoreIdentity, slow: &str) -> Result<()> {
    expect_adopted(&sandbox.ksc().await?, before).map_err(anyhow::Error::msg)?;
    let pod = sandbox.api::<Pod>().get(slow).await.context("the slow pod")?;
    let phase = pod.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Pending"), "{slow} is not slow: {phase:?}");
    for (pod, node_id) in before.nodes.iter().filter(|(pod, _)| *pod != slow) {
        let (admin, _forward) = sandbox.connect_admin(pod).await?;
        let node = admin.get_status().await?;
        let cluster = node.cluster.map(|cluster| cluster.to_string());
        if cluster.as_ref() != Some(&before.cluster_id) || node.node.to_string() != *node_id {
            bail!("{pod} is {} of {cluster:?}", node.node);
        }
    }
    Ok(())
}

/// Reads every key of the first life in the second, as part of one history; says how many.
async fn read_again(sandbox: &Sandbox, mut report: Report) -> Result<usize> {
    let connected = sandbox.connect_store().await?;
    let read = report.read_again(&connected.store).await;
    report.judge(Allowance::NoFailure, 500).map_err(anyhow::Error::msg)?;
    Ok(read)
}
