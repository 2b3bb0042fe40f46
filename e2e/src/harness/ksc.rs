//! The KeyStoreCluster of a scenario: its manifest, its conditions, and waiting for them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use keystore_crds::{ConditionType, KeyStoreCluster, KeyStoreClusterStatus, LayoutPhase, NodeState};
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::sandbox::Sandbox;
use super::wait::{Look, until};
use crate::store::CAUSAL_KEYSPACE;

/// The name of the resource in every scenario.
pub const NAME: &str = "demo";
pub const REPLICAS: i32 = 3;
pub const REPLICATION_FACTOR: i32 = 3;
pub const PARTITIONS: i32 = 64;
pub const CLIENT_PORT: u16 = 7400;
pub const ADMIN_PORT: u16 = 7401;
pub const HTTP_PORT: u16 = 7403;
/// From nothing to Ready: volumes, images that are in place already, probes, init.
pub const READY_WITHIN: Duration = Duration::from_secs(180);

/// What people would write, small enough for a laptop. The image is the operator's default unless the environment
/// names one.
pub fn manifest() -> Value {
    let mut manifest = json!({
        "apiVersion": "keystore.dev/v1alpha1",
        "kind": "KeyStoreCluster",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": REPLICAS,
            "replicationFactor": REPLICATION_FACTOR,
            "partitions": PARTITIONS,
            "keyspaces": [{"name": "default", "mode": "lww"}, {"name": CAUSAL_KEYSPACE, "mode": "siblings"}],
            "storage": {"size": "512Mi"},
            "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
        },
    });
    if let Ok(image) = std::env::var("KEYSTORE_NODE_IMAGE") {
        manifest["spec"]["image"] = image.into();
    }
    manifest
}

/// What a store is known by: it must not change while its volumes live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    pub cluster_id: String,
    pub epoch: i64,
    /// Node UUIDs by pod.
    pub nodes: BTreeMap<String, String>,
}

impl Sandbox {
    /// Creates the resource from a manifest as it is, without this crate's types in between.
    pub async fn create_ksc(&self, manifest: &Value) -> kube::Result<()> {
        self.post_ksc(manifest, "fieldValidation=Strict").await
    }

    /// Asks the API server whether it would accept a manifest.
    pub async fn try_ksc(&self, manifest: &Value) -> kube::Result<()> {
        self.post_ksc(manifest, "fieldValidation=Strict&dryRun=All").await
    }

    /// As kubectl sends it: unknown fields are errors.
    async fn post_ksc(&self, manifest: &Value, query: &str) -> kube::Result<()> {
        let path = KeyStoreCluster::url_path(&(), Some(&self.namespace));
        let body = serde_json::to_vec(manifest).map_err(kube::Error::SerdeError)?;
        let request = http::Request::post(format!("{path}?{query}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request::<Value>(request).await.map(drop)
    }

    /// Creates the resource and waits until it is Ready.
    pub async fn create_ready(&self, manifest: &Value) -> Result<KeyStoreCluster> {
        self.create_ksc(manifest).await.context("the resource is refused")?;
        self.wait_ready().await
    }

    pub async fn ksc(&self) -> Result<KeyStoreCluster> {
        Ok(self.api::<KeyStoreCluster>().get(NAME).await?)
    }

    pub async fn wait_ready(&self) -> Result<KeyStoreCluster> {
        self.wait_ksc("Ready", READY_WITHIN, |ksc| {
            expect_condition(ksc, ConditionType::Ready, "True", "Converged")
        })
        .await
    }

    /// Waits until `expect` has nothing to complain about.
    pub async fn wait_ksc(
        &self,
        what: &str,
        within: Duration,
        expect: impl Fn(&KeyStoreCluster) -> Result<(), String>,
    ) -> Result<KeyStoreCluster> {
        until(format!("KeyStoreCluster {NAME} is {what}"), within, || async {
            let ksc = self.ksc().await?;
            Ok(match expect(&ksc) {
                Ok(()) => Look::Done(ksc),
                Err(missing) => Look::NotYet(missing),
            })
        })
        .await
    }

    pub async fn patch_spec(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<KeyStoreCluster>().patch(NAME, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Changes the configuration, which a rollout brings to every pod.
    pub async fn begin_rollout(&self) -> Result<()> {
        self.patch_spec(json!({"config": {"log": {"level": "debug"}}})).await
    }

    /// What `kubectl scale` sends.
    pub async fn scale(&self, replicas: i32) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.api::<KeyStoreCluster>().patch_scale(NAME, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The pod's object, once it is ready and its UID is not `old_uid`.
    pub async fn wait_pod_ready(&self, name: &str, old_uid: Option<&str>, within: Duration) -> Result<Pod> {
        let pods = self.api::<Pod>();
        until(format!("pod {name} is ready"), within, || async {
            let Some(pod) = pods.get_opt(name).await? else {
                return Ok(Look::NotYet("it does not exist".into()));
            };
            if pod.metadata.uid.as_deref() == old_uid {
                return Ok(Look::NotYet("it is the old pod".into()));
            }
            Ok(if is_ready(&pod) { Look::Done(pod) } else { Look::NotYet("it is not ready".into()) })
        })
        .await
    }
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

pub fn pod_names() -> Vec<String> {
    pod_names_of(REPLICAS)
}

pub fn pod_names_of(replicas: i32) -> Vec<String> {
    (0..replicas).map(|ordinal| format!("{NAME}-{ordinal}")).collect()
}

pub fn status(ksc: &KeyStoreCluster) -> Result<&KeyStoreClusterStatus, String> {
    ksc.status.as_ref().ok_or_else(|| "no status".to_owned())
}

pub fn condition(ksc: &KeyStoreCluster, type_: ConditionType) -> Option<&Condition> {
    ksc.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_.as_str())
}

/// Complains unless the condition is there, speaks of the spec as it is now, and is as expected.
pub fn expect_condition(
    ksc: &KeyStoreCluster,
    type_: ConditionType,
    status: &str,
    reason: &str,
) -> Result<(), String> {
    let name = type_.as_str();
    let condition = condition(ksc, type_).ok_or_else(|| format!("no condition {name}"))?;
    if condition.observed_generation != ksc.metadata.generation {
        return Err(format!("{name} speaks of another generation"));
    }
    if (condition.status.as_str(), condition.reason.as_str()) != (status, reason) {
        let Condition { status, reason, message, .. } = condition;
        return Err(format!("{name} is {status}, {reason}: {message}"));
    }
    if condition.message.is_empty() {
        return Err(format!("{name} has no message"));
    }
    Ok(())
}

/// Complains unless every node serves, under the first layout.
pub fn expect_whole(ksc: &KeyStoreCluster) -> Result<(), String> {
    expect_settled(ksc)?;
    match status(ksc)?.epoch {
        Some(1) => Ok(()),
        epoch => Err(format!("the epoch is {epoch:?}")),
    }
}

/// Complains unless every node of the spec serves, under one layout that is in force, and has its share.
pub fn expect_settled(ksc: &KeyStoreCluster) -> Result<(), String> {
    use ConditionType::{Available, Degraded, Progressing, Ready, Stalled, UpdatePending};
    expect_condition(ksc, Ready, "True", "Converged")?;
    expect_condition(ksc, Available, "True", "QuorumAvailable")?;
    expect_condition(ksc, Progressing, "False", "Idle")?;
    for type_ in [Degraded, Stalled, UpdatePending] {
        let found = condition(ksc, type_).ok_or_else(|| format!("no condition {}", type_.as_str()))?;
        expect_condition(ksc, type_, "False", &found.reason)?;
    }
    let status = status(ksc)?;
    let replicas = ksc.spec.replicas;
    let counts = (status.replicas, status.ready_replicas, status.layout_phase);
    if counts != (replicas, replicas, Some(LayoutPhase::Stable)) || status.operation.is_some() {
        return Err(format!("the status has {counts:?} and operation {:?}", status.operation));
    }
    let pods: Vec<_> = status.nodes.iter().map(|node| node.pod.clone()).collect();
    if pods != pod_names_of(replicas) {
        return Err(format!("the status names {pods:?}"));
    }
    let right = |node: &&_| {
        let keystore_crds::NodeStatus { state, partitions, node_id, zone, .. } = node;
        *state == NodeState::Serving && share(ksc, zone.as_ref()).contains(partitions) && node_id.is_some()
    };
    match status.nodes.iter().find(|node| !right(node)) {
        Some(node) => Err(format!("{node:?}")),
        None => Ok(()),
    }
}

/// How many partitions a node of a zone has: those of its zone, of which there are as many as copies, or of all, are
/// spread evenly.
fn share(ksc: &KeyStoreCluster, zone: Option<&String>) -> RangeInclusive<i32> {
    let nodes = ksc.status.as_ref().map(|status| status.nodes.as_slice()).unwrap_or_default();
    let zones: BTreeSet<_> = nodes.iter().map(|node| node.zone.as_ref()).collect();
    let copies = ksc.spec.replication_factor;
    let is_one_each = usize::try_from(copies).is_ok_and(|copies| zones.len() == copies);
    let among = nodes.iter().filter(|node| !is_one_each || node.zone.as_ref() == zone).count();
    let (held, among) = match i32::try_from(among) {
        Ok(among) if among > 0 => (ksc.spec.partitions * if is_one_each { 1 } else { copies }, among),
        _ => return 0..=0,
    };
    held / among..=held / among + i32::from(held % among > 0)
}

pub fn identity(ksc: &KeyStoreCluster) -> Result<StoreIdentity> {
    let status = status(ksc).map_err(|missing| anyhow!(missing))?;
    let node_id = |node: &keystore_crds::NodeStatus| {
        let id = node.node_id.clone().with_context(|| format!("{} has no node UUID", node.pod))?;
        Ok((node.pod.clone(), id))
    };
    Ok(StoreIdentity {
        cluster_id: status.cluster_id.clone().context("no cluster UUID")?,
        epoch: status.epoch.context("no epoch")?,
        nodes: status.nodes.iter().map(node_id).collect::<Result<_>>()?,
    })
}
