//! A pod that returns with an empty volume does not serve and is reported, and nothing is initialised anew: the two
//! other nodes go on with all the data. (The first half of scenario 16; rebuilding the node is its second.)

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use keystore_client::NodeState;
use keystore_crds::{ConditionType, KeyStoreCluster};
use kube::api::DeleteParams;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{condition, expect_condition, identity, is_ready, manifest};
use crate::harness::sandbox::Sandbox;
use crate::harness::volumes::claim_name;
use crate::harness::wait::{Look, throughout, until};
use crate::load::{Allowance, Load, Settings};

const EMPTIED: &str = "demo-2";
const BACK_WITHIN: Duration = Duration::from_secs(120);
const LEFT_ALONE_FOR: Duration = Duration::from_secs(10);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, 300).await?;

    empty(sandbox).await?;
    let is_noticed = |ksc: &KeyStoreCluster| {
        expect_condition(ksc, ConditionType::Degraded, "True", "NodeReplaced")?;
        expect_condition(ksc, ConditionType::Ready, "False", "Degraded")?;
        expect_condition(ksc, ConditionType::Available, "True", "QuorumAvailable")?;
        let message =
            condition(ksc, ConditionType::Degraded).map(|found| found.message.as_str()).unwrap_or_default();
        if message.contains(EMPTIED) {
            Ok(())
        } else {
            Err(format!("the message names another pod: {message}"))
        }
    };
    sandbox.wait_ksc("Degraded", BACK_WITHIN, is_noticed).await?;
    throughout("the empty node is left alone", LEFT_ALONE_FOR, || expect_left_alone(sandbox, &before))
        .await?;
    // The pod went in order: it drained, and no request may have failed.
    let summary = load.stop().await.judge(Allowance::NoFailure, 600).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

/// Deletes the pod with its claim, and waits for the new claim's pod to run.
async fn empty(sandbox: &Sandbox) -> Result<()> {
    let pods = sandbox.api::<Pod>();
    let uid = pods.get(EMPTIED).await?.metadata.uid.context("a pod without a UID")?;
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

async fn expect_left_alone(sandbox: &Sandbox, before: &crate::harness::ksc::StoreIdentity) -> Result<()> {
    let ksc = sandbox.ksc().await?;
    let status = ksc.status.context("no status")?;
    ensure!(status.cluster_id.as_ref() == Some(&before.cluster_id), "cluster {:?}", status.cluster_id);
    ensure!(status.epoch == Some(before.epoch), "epoch {:?}", status.epoch);
    ensure!(!is_ready(&sandbox.api::<Pod>().get(EMPTIED).await?), "{EMPTIED} is ready");
    let (admin, _forward) = sandbox.connect_admin(EMPTIED).await?;
    let node = admin.get_status().await?;
    if node.state != NodeState::Uninitialized || node.cluster.is_some() {
        bail!("{EMPTIED} was initialised: {node:?}");
    }
    ensure!(before.nodes.get(EMPTIED) != Some(&node.node.to_string()), "an empty volume with the old UUID");
    Ok(())
}
