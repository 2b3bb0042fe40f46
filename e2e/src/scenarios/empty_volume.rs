//! Scenario 16: a pod that returns with an empty volume is reported, and its node is replaced by a new one that is filled
//! from the two others, which go on with all the data: in the end it holds what they do. Nothing is initialised anew.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use keystore_crds::KeyStoreCluster;
use kube::api::DeleteParams;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{expect_settled, identity, manifest};
use crate::harness::sandbox::Sandbox;
use crate::harness::volumes::claim_name;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, Settings};

const EMPTIED: &str = "demo-2";
const BACK_WITHIN: Duration = Duration::from_secs(120);
const REPLACED_WITHIN: Duration = Duration::from_secs(180);
const CONVERGED_WITHIN: Duration = Duration::from_secs(90);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, 300).await?;

    empty(sandbox).await?;
    let is_replaced = |ksc: &KeyStoreCluster| {
        expect_settled(ksc)?;
        let now = identity(ksc).map_err(|error| error.to_string())?;
        if now.cluster_id != before.cluster_id {
            return Err(format!("the store is another one: {}", now.cluster_id));
        }
        let changed: Vec<_> =
            now.nodes.iter().filter(|(pod, node)| before.nodes.get(*pod) != Some(*node)).collect();
        match changed.as_slice() {
            [(pod, _)] if *pod == EMPTIED && now.nodes.len() == before.nodes.len() => Ok(()),
            _ => Err(format!("the nodes were {:?} and are {:?}", before.nodes, now.nodes)),
        }
    };
    sandbox.wait_ksc("whole again with a new node", REPLACED_WITHIN, is_replaced).await?;
    wait_for_writes(&load, 600).await?;
    // The pod went in order: it drained, and no request may have failed.
    let report = load.stop().await;
    let summary = report.judge(Allowance::NoFailure, 600).map_err(anyhow::Error::msg)?;
    let keys = sandbox.wait_converged(&report.keys(), CONVERGED_WITHIN).await?;
    Ok(Ending::Passed(format!("{keys} keys the same on every node; {summary}")))
}

/// Deletes the pod with its claim, and waits for the new claim's pod to run.
async fn empty(sandbox: &Sandbox) -> Result<()> {
    let pods = sandbox.api::<Pod>();
    let uid = sandbox.pod_uid(EMPTIED).await?;
    let claim = claim_name(EMPTIED);
    let old_claim = sandbox.claim_uids().await?.remove(&claim).context("the pod has no claim")?;
    // The claim goes when its pod does; deleted in this order, no new pod can take up the old one.
    sandbox.delete::<PersistentVolumeClaim>(&claim).await?;
    pods.delete(EMPTIED, &DeleteParams::default()).await?;
    until(format!("{EMPTIED} runs with a new volume"), BACK_WITHIN, || async {
        let claims = sandbox.claim_uids().await?;
        if claims.get(&claim).is_none_or(|uid| *uid == old_claim) {
            return Ok(Look::NotYet("no new claim".into()));
        }
        let Some(pod) = pods.get_opt(EMPTIED).await? else { return Ok(Look::NotYet("no pod".into())) };
        let phase = pod.status.and_then(|status| status.phase);
        let runs = pod.metadata.uid.as_ref() != Some(&uid) && phase.as_deref() == Some("Running");
        Ok(if runs { Look::Done(()) } else { Look::NotYet(format!("{phase:?}")) })
    })
    .await
}
