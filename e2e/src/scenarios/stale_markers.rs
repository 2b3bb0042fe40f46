//! Scenario 11: labels, annotations and an old status that speak of another state than the store is in. The operator
//! asks the store, and whatever was planted changes nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use keystore_crds::KeyStoreCluster;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Ending, wait_for_writes, wait_served_by};
use crate::harness::ksc::{NAME, REPLICAS, expect_settled, identity, manifest, pod_names_of};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::volumes::claim_name;
use crate::harness::wait::throughout;
use crate::load::{Allowance, Load, Settings};

const WIDE: i32 = 4;
const MOVED_WITHIN: Duration = Duration::from_secs(240);
/// Long enough for several looks of the operator.
const UNMOVED_FOR: Duration = Duration::from_secs(15);
/// Whoever is away for longer is replaced: an old status says of nodes that they are.
const REPLACE_AFTER_SECONDS: i32 = 60;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replaceAfterSeconds"] = REPLACE_AFTER_SECONDS.into();
    let old = sandbox.create_ready(&manifest).await?.status.context("no status")?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    sandbox.scale(WIDE).await?;
    let before = identity(&sandbox.wait_ksc("settled", MOVED_WITHIN, expect_settled).await?)?;
    wait_served_by(sandbox, &pod_names_of(WIDE)).await?;
    let objects = object_uids(sandbox).await?;

    let operator = Operator::new(sandbox.client.clone());
    operator.scale(sandbox, 0).await?;
    let mut planted = serde_json::to_value(old)?;
    planted["operation"] = json!({
        "kind": "ScaleDown", "from": WIDE, "to": 1, "phase": "RemovingPods", "message": "nothing is held there any more",
        "since": "2001-01-01T00:00:00Z",
    });
    planted["layoutPhase"] = "joint".into();
    for node in planted["nodes"].as_array_mut().context("a status without nodes")? {
        node["state"] = "lost".into();
        node["downSince"] = "2001-01-01T00:00:00Z".into();
        node["partitions"] = 0.into();
    }
    plant(sandbox, &planted).await?;
    operator.scale(sandbox, 1).await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    sandbox.wait_ksc("settled again", MOVED_WITHIN, expect_settled).await?;
    throughout("nothing is done", UNMOVED_FOR, || async {
        let (now, there) = (identity(&sandbox.ksc().await?)?, object_uids(sandbox).await?);
        ensure!(now == before, "the store was {before:?} and is {now:?}");
        ensure!(there == objects, "the objects were {objects:?} and are {there:?}");
        Ok(())
    })
    .await?;
    // The markers do not matter later either.
    sandbox.scale(REPLICAS).await?;
    sandbox.wait_ksc("settled with fewer", MOVED_WITHIN, expect_settled).await?;
    wait_for_writes(&load, 100).await?;
    let summary = load.stop().await.judge(Allowance::NoFailure, 300).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

/// Markers of the kinds that other operators go by, on everything, and the status.
async fn plant(sandbox: &Sandbox, status: &Value) -> Result<()> {
    for pod in pod_names_of(WIDE) {
        mark::<Pod>(sandbox, &pod).await?;
        mark::<PersistentVolumeClaim>(sandbox, &claim_name(&pod)).await?;
    }
    mark::<StatefulSet>(sandbox, NAME).await?;
    mark::<KeyStoreCluster>(sandbox, NAME).await?;
    let patch = Patch::Merge(json!({"status": status}));
    sandbox.api::<KeyStoreCluster>().patch_status(NAME, &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn mark<K>(sandbox: &Sandbox, name: &str) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let labels =
        json!({"keystore.dev/state": "lost", "keystore.dev/drained": "true", "keystore.dev/epoch": "99"});
    let annotations = json!({"keystore.dev/operation": "ScaleDown", "keystore.dev/replicas": "1"});
    let patch = Patch::Merge(json!({"metadata": {"labels": labels, "annotations": annotations}}));
    sandbox.api::<K>().patch(name, &PatchParams::default(), &patch).await.with_context(|| name.to_owned())?;
    Ok(())
}

/// UIDs of the pods and claims, by name.
async fn object_uids(sandbox: &Sandbox) -> Result<BTreeMap<String, String>> {
    let mut uids = sandbox.claim_uids().await?;
    uids.extend(sandbox.pod_uids().await?);
    Ok(uids)
}
