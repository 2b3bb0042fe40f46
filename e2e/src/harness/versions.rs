//! Resource versions: what moved, and when nothing does any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keystore_crds::KeyStoreCluster;
use kube::api::ListParams;
use kube::{Resource, ResourceExt};

use super::ksc::{NAME, REPLICAS};
use super::sandbox::Sandbox;
use super::wait::{Look, until, until_steady};

const AT_REST_FOR: Duration = Duration::from_secs(5);
const AT_REST_WITHIN: Duration = Duration::from_secs(60);

impl Sandbox {
    /// Waits until whatever was set in motion has come to rest, and says how everything is then. Kubernetes counts a
    /// pod as available some time after it became ready, which moves the StatefulSet once more.
    pub async fn wait_at_rest(&self) -> Result<BTreeMap<String, String>> {
        until("every pod counts as available", AT_REST_WITHIN, || async {
            let status = self.api::<StatefulSet>().get(NAME).await?.status.unwrap_or_default();
            let available = status.available_replicas.unwrap_or_default();
            Ok(if available == REPLICAS { Look::Done(()) } else { Look::NotYet(format!("{available} are")) })
        })
        .await?;
        until_steady("the objects are at rest", AT_REST_FOR, AT_REST_WITHIN, || versions(self)).await
    }
}

/// The resource version of every object of the store, by kind and name.
pub async fn versions(sandbox: &Sandbox) -> Result<BTreeMap<String, String>> {
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

/// The names of what is not the same in both.
pub fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> =
        names.into_iter().filter(|name| before.get(*name) != after.get(*name)).map(String::as_str).collect();
    changed.join(", ")
}
