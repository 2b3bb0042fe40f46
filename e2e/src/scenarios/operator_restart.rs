//! An operator that restarts finds everything as it should be: no object is written, and the store never notices.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keystore_crds::KeyStoreCluster;
use kube::api::ListParams;
use kube::{Resource, ResourceExt};

use super::Ending;
use crate::harness::ksc::{NAME, REPLICAS, expect_whole, identity, manifest};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, throughout, until, until_steady};
use crate::load::{Allowance, Load, Settings};

const IDLE_FOR: Duration = Duration::from_secs(15);
const AT_REST_FOR: Duration = Duration::from_secs(5);
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    sandbox.wait_ksc("whole", SETTLED_WITHIN, expect_whole).await?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    // Whatever creation set in motion comes to rest first; Kubernetes counts a pod as available some time after it
    // became ready, which moves the StatefulSet once more.
    until("every pod counts as available", SETTLED_WITHIN, || async {
        let status = sandbox.api::<StatefulSet>().get(NAME).await?.status.unwrap_or_default();
        let available = status.available_replicas.unwrap_or_default();
        Ok(if available == REPLICAS { Look::Done(()) } else { Look::NotYet(format!("{available} are")) })
    })
    .await?;
    let at_rest =
        until_steady("the objects are at rest", AT_REST_FOR, SETTLED_WITHIN, || versions(sandbox)).await?;

    let operator = Operator::new(sandbox.client.clone());
    operator.restart().await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    throughout("nothing is written", IDLE_FOR, || async {
        let now = versions(sandbox).await?;
        ensure!(now == at_rest, "changed: {}", differences(&at_rest, &now));
        Ok(())
    })
    .await?;

    let ksc = sandbox.wait_ksc("whole", SETTLED_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    let summary = load.stop().await.judge(Allowance::NoFailure, 300).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(format!("{} objects unmoved; {summary}", at_rest.len())))
}

/// The resource version of every object of the store, by kind and name.
async fn versions(sandbox: &Sandbox) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    add::<KeyStoreCluster>(sandbox, &mut versions).await?;
    add::<StatefulSet>(sandbox, &mut versions).await?;
    add::<ControllerRevision>(sandbox, &mut versions).await?;
    add::<Pod>(sandbox, &mut versions).await?;
    add::<Service>(sandbox, &mut versions).await?;
    add::<ServiceAccount>(sandbox, &mut versions).await?;
    add::<ConfigMap>(sandbox, &mut versions).await?;
    add::<PodDisruptionBudget>(sandbox, &mut versions).await?;
    add::<PersistentVolumeClaim>(sandbox, &mut versions).await?;
    Ok(versions)
}

async fn add<K>(sandbox: &Sandbox, versions: &mut BTreeMap<String, String>) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    for object in sandbox.api::<K>().list_metadata(&ListParams::default()).await? {
        let version = object.resource_version().context("an object without a resource version")?;
        versions.insert(format!("{} {}", K::kind(&()), object.name_any()), version);
    }
    Ok(())
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> =
        names.into_iter().filter(|name| before.get(*name) != after.get(*name)).map(String::as_str).collect();
    changed.join(", ")
}
