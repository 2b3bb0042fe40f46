//! A namespace of a scenario's own, which is gone when the scenario is over, with every volume in it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::wait::{Look, until};

/// Marks the namespaces of scenarios; its value is the scenario's name.
const LABEL: &str = "keystore.dev/scenario";
const REMOVED_WITHIN: Duration = Duration::from_secs(180);

pub struct Sandbox {
    pub client: Client,
    pub namespace: String,
    undo: Mutex<Vec<Undo>>,
}

/// Gives back what a scenario has taken outside of its namespace.
type Undo = BoxFuture<'static, Result<()>>;

impl Sandbox {
    /// A new namespace with restricted pod security.
    pub async fn create(client: Client, scenario: &str) -> Result<Self> {
        let namespace = format!("e2e-{scenario}-{:06x}", rand::random::<u32>() & 0xff_ffff);
        let object = serde_json::from_value(json!({
            "metadata": {
                "name": namespace,
                "labels": {LABEL: scenario, "pod-security.kubernetes.io/enforce": "restricted"},
            },
        }))?;
        let api: Api<Namespace> = Api::all(client.clone());
        api.create(&PostParams::default(), &object).await.context("the namespace cannot be created")?;
        Ok(Self { client, namespace, undo: Mutex::default() })
    }

    /// The objects of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Deletes an object; one that is gone already is fine.
    pub async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        match self.api::<K>().delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{name} cannot be deleted")),
        }
    }

    pub async fn wait_gone<K>(&self, name: &str, within: Duration) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api = self.api::<K>();
        until(format!("{name} is gone"), within, || async {
            Ok(match api.get_opt(name).await? {
                Some(_) => Look::NotYet("it is still there".into()),
                None => Look::Done(()),
            })
        })
        .await
    }

    /// The pods of the store, by name.
    pub async fn store_pods(&self) -> Result<Vec<Pod>> {
        let mut pods = self.api::<Pod>().list(&store_pods()).await?.items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// UIDs of the store's pods, by name.
    pub async fn pod_uids(&self) -> Result<BTreeMap<String, String>> {
        let pods = self.store_pods().await?.into_iter();
        pods.map(|pod| Ok((pod.name_any(), uid(pod)?))).collect()
    }

    pub async fn pod_uid(&self, pod: &str) -> Result<String> {
        uid(self.api::<Pod>().get(pod).await?)
    }

    /// Has something done when the scenario is over, however that ends; what was asked for last comes first.
    pub fn undo_later(&self, undo: impl Future<Output = Result<()>> + Send + 'static) {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner).push(undo.boxed());
    }

    /// Undoes what is to be undone, removes the namespace and waits until it and its volumes are gone.
    pub async fn remove(&self) -> Result<()> {
        let undo = std::mem::take(&mut *self.undo.lock().unwrap_or_else(PoisonError::into_inner));
        for undo in undo.into_iter().rev() {
            undo.await?;
        }
        self.remove_namespace().await?;
        self.remove_volumes().await
    }

    /// As `kubectl delete namespace` does, to the end.
    pub async fn remove_namespace(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        match namespaces.delete(&self.namespace, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error).context("the namespace cannot be deleted"),
        }
        until(format!("namespace {} is gone", self.namespace), REMOVED_WITHIN, || async {
            Ok(match namespaces.get_opt(&self.namespace).await? {
                Some(namespace) => Look::NotYet(format!("it is still there: {:?}", namespace.status)),
                None => Look::Done(()),
            })
        })
        .await
    }

    /// A class may keep its volumes when their claims are gone: nobody else would remove them.
    async fn remove_volumes(&self) -> Result<()> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        until(format!("the volumes of {} are gone", self.namespace), REMOVED_WITHIN, || async {
            let mut left = Vec::new();
            for volume in volumes.list(&ListParams::default()).await? {
                let Some(spec) = &volume.spec else { continue };
                let claim = spec.claim_ref.as_ref().and_then(|claim| claim.namespace.as_deref());
                if claim != Some(&self.namespace) {
                    continue;
                }
                let name = volume.name_any();
                if spec.persistent_volume_reclaim_policy.as_deref() == Some("Retain") {
                    volumes.delete(&name, &DeleteParams::default()).await?;
                }
                left.push(name);
            }
            Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left.join(", ")) })
        })
        .await
    }
}

/// The pods of stores.
pub fn store_pods() -> ListParams {
    ListParams::default().labels("keystore.dev/cluster,app.kubernetes.io/component=node")
}

fn uid(pod: Pod) -> Result<String> {
    pod.metadata.uid.context("a pod without a UID")
}

pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
