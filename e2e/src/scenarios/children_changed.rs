//! Scenario 31: each owned object is edited, its labels too, and deleted; it is put back as it was, and the store goes
//! on. Where the StatefulSet itself is deleted its pods go with it, and come back as the nodes that they were.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{NAME, expect_whole, identity, manifest};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, Settings};

const PUT_BACK_WITHIN: Duration = Duration::from_secs(60);
const BACK_WITHIN: Duration = Duration::from_secs(180);

/// An object that the operator makes for a store.
trait Child:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug
{
}

impl<K> Child for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Serialize
        + Debug
{
}

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let claims = sandbox.claim_uids().await?;
    let connected = sandbox.connect_store().await?;
    let mut load = Load::start(connected.store.clone(), Settings::default());
    let headless = format!("{NAME}-nodes");
    let config = config_map(sandbox).await?;

    edit::<Service>(sandbox, NAME, json!({"spec": {"selector": {"keystore.dev/cluster": "other"}}})).await?;
    edit::<Service>(
        sandbox,
        NAME,
        json!({"spec": {"ports": [{"name": "client", "port": 7400, "targetPort": 7403}]}}),
    )
    .await?;
    edit::<Service>(sandbox, &headless, json!({"spec": {"publishNotReadyAddresses": false}})).await?;
    edit::<PodDisruptionBudget>(sandbox, NAME, json!({"spec": {"maxUnavailable": 3}})).await?;
    edit::<ServiceAccount>(sandbox, NAME, json!({"automountServiceAccountToken": true})).await?;
    edit::<ConfigMap>(sandbox, &config, json!({})).await?;
    let hasty = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}});
    edit::<StatefulSet>(sandbox, NAME, hasty).await?;

    delete::<Service>(sandbox, NAME).await?;
    delete::<Service>(sandbox, &headless).await?;
    delete::<PodDisruptionBudget>(sandbox, NAME).await?;
    delete::<ServiceAccount>(sandbox, NAME).await?;
    delete::<ConfigMap>(sandbox, &config).await?;
    sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    wait_for_writes(&load, 200).await?;

    load.note_fault();
    delete::<StatefulSet>(sandbox, NAME).await?;
    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    ensure!(sandbox.claim_uids().await? == claims, "the claims were not taken up again");
    wait_for_writes(&load, 200).await?;
    let allowance = Allowance::AfterFaults { within: BACK_WITHIN, failures_max: usize::MAX };
    let summary = load.stop().await.judge(allowance, 400).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

async fn config_map(sandbox: &Sandbox) -> Result<String> {
    let maps = sandbox.api::<ConfigMap>().list_metadata(&ListParams::default()).await?.items;
    let mut names = maps.iter().map(ResourceExt::name_any);
    names.find(|name| name.starts_with(&format!("{NAME}-config-"))).context("the store has no ConfigMap")
}

/// What `kubectl edit` and `kubectl label` may do to an object: a change of its own, and labels that would hide it.
/// Waits until nothing of that is left.
async fn edit<K: Child>(sandbox: &Sandbox, name: &str, mut change: Value) -> Result<()> {
    change["metadata"] =
        json!({"labels": {"keystore.dev/cluster": null, "app.kubernetes.io/managed-by": "somebody"}});
    let api = sandbox.api::<K>();
    let before = content(&api.get(name).await?)?;
    let edited = content(&api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await?)?;
    ensure!(edited != before, "{} {name} was not changed", K::kind(&()));
    wait_put_back(sandbox, name, |now: &K| Ok(content(now)? == before)).await
}

/// Deletes an object, and waits until another one like it is there.
async fn delete<K: Child>(sandbox: &Sandbox, name: &str) -> Result<()> {
    let api = sandbox.api::<K>();
    let old = api.get(name).await?;
    let before = content(&old)?;
    api.delete(name, &DeleteParams::default()).await?;
    wait_put_back(sandbox, name, |now: &K| Ok(now.uid() != old.uid() && content(now)? == before)).await
}

async fn wait_put_back<K: Child>(
    sandbox: &Sandbox,
    name: &str,
    is_back: impl Fn(&K) -> Result<bool>,
) -> Result<()> {
    until(format!("{} {name} is put back", K::kind(&())), PUT_BACK_WITHIN, || async {
        let Some(now) = sandbox.api::<K>().get_opt(name).await? else {
            return Ok(Look::NotYet("it is gone".into()));
        };
        Ok(if is_back(&now)? { Look::Done(()) } else { Look::NotYet(content(&now)?.to_string()) })
    })
    .await
}

/// What an object says, without what Kubernetes keeps in it or draws for each one anew.
fn content(object: &impl Serialize) -> Result<Value> {
    let mut content = serde_json::to_value(object)?;
    let labels = content["metadata"]["labels"].take();
    content["metadata"] = json!({"labels": labels});
    content["status"].take();
    for drawn in ["clusterIP", "clusterIPs"] {
        if let Some(spec) = content["spec"].as_object_mut() {
            spec.remove(drawn);
        }
    }
    Ok(content)
}
