//! Scenario 29: somebody scales the StatefulSet instead of the resource. Down: it is put back, and the node returns
//! with its volume. Up: the extra pods own nothing, and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use keystore_crds::KeyStoreCluster;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{NAME, REPLICAS, StoreIdentity, expect_whole, identity, manifest, pod_names};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, Settings};

const PUT_BACK_WITHIN: Duration = Duration::from_secs(120);
const WRITES_PER_PHASE: usize = 200;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let claims = sandbox.claim_uids().await?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    // The pod that goes drains, and comes back alone: no request may fail.
    scale(sandbox, REPLICAS - 1).await?;
    wait_put_back(sandbox, &before).await?;
    ensure!(sandbox.claim_uids().await? == claims, "the claim was not taken up again");
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    scale(sandbox, REPLICAS + 2).await?;
    wait_put_back(sandbox, &before).await?;
    let now = sandbox.claim_uids().await?;
    ensure!(claims.iter().all(|claim| now.get(claim.0) == Some(claim.1)), "a claim was replaced: {now:?}");
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    let summary =
        load.stop().await.judge(Allowance::NoFailure, 3 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

/// What `kubectl scale statefulset` sends. The StatefulSet has to have seen it before anything counts as put back.
async fn scale(sandbox: &Sandbox, replicas: i32) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let sets = sandbox.api::<StatefulSet>();
    let before = sets.get(NAME).await?.metadata.generation;
    sets.patch_scale(NAME, &PatchParams::default(), &patch).await?;
    until("the change is noticed", PUT_BACK_WITHIN, || async {
        let set = sets.get(NAME).await?;
        let observed = set.status.and_then(|status| status.observed_generation);
        // One for the change, and one at least for putting it back.
        let is_noticed = observed > before && set.metadata.generation > before.map(|before| before + 1);
        Ok(if is_noticed { Look::Done(()) } else { Look::NotYet(format!("observed {observed:?}")) })
    })
    .await
}

/// The same nodes under the same layout, in pods of their own and no others.
async fn wait_put_back(sandbox: &Sandbox, before: &StoreIdentity) -> Result<()> {
    until("the pods are as they should be", PUT_BACK_WITHIN, || async {
        let set = sandbox.api::<StatefulSet>().get(NAME).await?;
        let replicas = set.spec.and_then(|spec| spec.replicas);
        let pods: Vec<_> = sandbox.store_pods().await?.iter().map(ResourceExt::name_any).collect();
        let is_right = replicas == Some(REPLICAS) && pods == pod_names();
        Ok(if is_right { Look::Done(()) } else { Look::NotYet(format!("{replicas:?}: {pods:?}")) })
    })
    .await?;
    let is_same = |ksc: &KeyStoreCluster| {
        expect_whole(ksc)?;
        let now = identity(ksc).map_err(|error| error.to_string())?;
        if now == *before { Ok(()) } else { Err(format!("the store was {before:?} and is {now:?}")) }
    };
    sandbox.wait_ksc("what it was", PUT_BACK_WITHIN, is_same).await.map(drop)
}
