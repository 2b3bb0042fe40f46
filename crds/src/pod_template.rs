//! The part of the spec that a person may add to the pods.
//!
//! Only what the operator does not decide by itself: containers, probes, volumes and security are not here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct PodTemplate {
    /// Labels and annotations for the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,

    /// Scheduling and environment of the pods. Changing it restarts them one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PodSettings>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(cel)]
pub struct PodMetadata {
    /// Labels added to the pods. Those with the prefixes keystore.dev/ and app.kubernetes.io/ are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('keystore.dev/') && !k.startsWith('app.kubernetes.io/'))")
        .message("labels that start with keystore.dev/ or app.kubernetes.io/ are set by the operator: use other names"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations added to the pods. Those with the prefix keystore.dev/ are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('keystore.dev/'))")
        .message("annotations that start with keystore.dev/ are set by the operator: use other names"))]
    pub annotations: BTreeMap<String, String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(cel)]
#[serde(rename_all = "camelCase")]
pub struct PodSettings {
    /// Where pods may and should run, in relation to Kubernetes nodes and to other pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// Taints of Kubernetes nodes that the pods put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,

    /// Labels that a Kubernetes node must have for the pods to run on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// How pods are spread. Replaces the default, which spreads them over zones and Kubernetes nodes where possible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["topologyKey", "whenUnsatisfiable"]
    ))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,

    /// The PriorityClass of the pods.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,

    /// Secrets for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// Environment of the storage node's container. Names that start with KEYSTORE_ would override its
    /// configuration and are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(e, !e.name.startsWith('KEYSTORE_'))")
        .message("environment variables that start with KEYSTORE_ would override what the operator configures: use spec.config"))]
    pub env: Vec<EnvVar>,

    /// How long a pod may take to stop: it finishes its requests and syncs its data. At least 15, default 60 seconds.
    #[schemars(range(min = 15, max = 3600))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<i64>,
}
