//! Whether the pods' template may change now.
//!
//! What people ask for rolls out at once. What only the operator's own version would change (another default image,
//! another probe) waits until somebody approves it, so that upgrading the operator restarts no database. A cluster
//! that was never in force has nothing to protect.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use keystore_crds::{KeyStoreCluster, KeyStoreClusterSpec};
use kube::ResourceExt;
use serde_json::json;

use crate::differ::hash;
use crate::names::{APPROVE_ANNOTATION, SPEC_ANNOTATION, TEMPLATE_ANNOTATION};

/// The template to apply, and what is held back.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    pub template: PodTemplateSpec,
    pub template_hash: String,
    pub spec_hash: String,
    /// The hash to approve, while an update waits.
    pub pending: Option<String>,
}

/// `fresh` is the template that this operator makes of the spec.
pub fn decide_rollout(
    cluster: &KeyStoreCluster,
    live: Option<&StatefulSet>,
    fresh: PodTemplateSpec,
    was_in_force: bool,
) -> Rollout {
    let template_hash = hash(&json!(fresh));
    let spec_hash = hash(&pods_spec(&cluster.spec));
    let at_once = Rollout { template: fresh, template_hash: template_hash.clone(), spec_hash, pending: None };
    let Some((live_template, live_hash)) = live.and_then(applied_template) else { return at_once };
    let asked_for =
        live.and_then(|live| annotation(live, SPEC_ANNOTATION)) != Some(at_once.spec_hash.as_str());
    let approved = cluster.annotations().get(APPROVE_ANNOTATION) == Some(&template_hash);
    if !was_in_force || asked_for || approved || live_hash == template_hash {
        return at_once;
    }
    Rollout {
        template: live_template.clone(),
        template_hash: live_hash.to_owned(),
        spec_hash: at_once.spec_hash,
        pending: Some(template_hash),
    }
}

/// The parts of the spec that shape the pods. A field added later must be left out of this while it has its default,
/// or the operator that knows it would take it for a change that somebody asked for.
fn pods_spec(spec: &KeyStoreClusterSpec) -> serde_json::Value {
    let KeyStoreClusterSpec {
        replicas: _,
        replication_factor: _,
        partitions: _,
        keyspaces: _,
        replace_after_seconds: _,
        paused: _,
        image,
        image_pull_policy,
        consistency,
        storage,
        resources,
        zone_topology_key,
        config,
        pod_template,
    } = spec;
    json!({
        "image": image,
        "imagePullPolicy": image_pull_policy,
        "consistency": consistency,
        "engine": storage.engine,
        "durability": storage.durability,
        "resources": resources,
        "zoneTopologyKey": zone_topology_key,
        "config": config,
        "podTemplate": pod_template,
    })
}

fn applied_template(live: &StatefulSet) -> Option<(&PodTemplateSpec, &str)> {
    Some((&live.spec.as_ref()?.template, annotation(live, TEMPLATE_ANNOTATION)?))
}

fn annotation<'a>(live: &'a StatefulSet, key: &str) -> Option<&'a str> {
    live.annotations().get(key).map(String::as_str)
}

/// The ConfigMaps that a template mounts.
pub fn config_maps(template: &PodTemplateSpec) -> Vec<&str> {
    let volumes = template.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| Some(volume.config_map.as_ref()?.name.as_str())).collect()
}
