//! The StatefulSet.
//!
//! Pods start in parallel, since no node waits for a lower ordinal. Volumes are retained in every case: a
//! StatefulSet that is deleted by hand must not take the data along.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy,
    StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PodTemplateSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::child_metadata;
use super::pod::DATA_VOLUME;
use crate::names::{SPEC_ANNOTATION, TEMPLATE_ANNOTATION};
use crate::validate::ValidCluster;

/// How many earlier revisions, each with its ConfigMap, are kept for a look back.
const REVISIONS_KEPT: i32 = 3;

/// A node serves before it has found the others again, which takes it as long as a pod's old address is remembered by
/// DNS. A rollout that took the next one at once would leave fewer than a quorum connected.
const READY_SECONDS: i32 = 10;

/// What `plan` and `rollout` decided about the StatefulSet.
pub struct StatefulSetInput {
    pub replicas: u32,
    pub template: PodTemplateSpec,
    pub template_hash: String,
    pub spec_hash: String,
}

pub fn build_stateful_set(cluster: &ValidCluster, input: StatefulSetInput) -> StatefulSet {
    let StatefulSetInput { replicas, template, template_hash, spec_hash } = input;
    let mut metadata = child_metadata(cluster, cluster.names.cluster.clone());
    metadata.annotations = Some(BTreeMap::from([
        (TEMPLATE_ANNOTATION.to_owned(), template_hash),
        (SPEC_ANNOTATION.to_owned(), spec_hash),
    ]));
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas.cast_signed()),
            service_name: Some(cluster.names.headless_service()),
            selector: LabelSelector {
                match_labels: Some(cluster.names.selector()),
                ..LabelSelector::default()
            },
            pod_management_policy: Some("Parallel".to_owned()),
            min_ready_seconds: Some(READY_SECONDS),
            revision_history_limit: Some(REVISIONS_KEPT),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(0),
                    max_unavailable: None,
                }),
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            template,
            volume_claim_templates: Some(vec![build_claim(cluster)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// Nothing here may depend on what can change: the API server never lets a claim template be altered.
fn build_claim(cluster: &ValidCluster) -> PersistentVolumeClaim {
    let storage = &cluster.spec.storage;
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA_VOLUME.to_owned()),
            labels: Some(cluster.names.labels()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(storage.size.clone()))])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
