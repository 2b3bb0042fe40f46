//! `KeyStoreCluster`: what a person asks for.
//!
//! Holds the spec's shape, its defaults and the rules that span fields; storage and pod settings have modules of
//! their own. Rules that compare with the old object protect what a running cluster cannot change.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::pod_template::PodTemplate;
use crate::status::KeyStoreClusterStatus;
use crate::storage::StorageSpec;

/// What `spec.replicas` can be at most. A layout has room for as many again, which may be lost at a time.
pub const REPLICAS_MAX: usize = 64;

/// Sections of the node configuration, each a free-form object in the form of the configuration file.
pub type ConfigSections = BTreeMap<String, BTreeMap<String, serde_json::Value>>;

/// A leaderless, replicated key-value store.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "keystore.dev",
    version = "v1alpha1",
    kind = "KeyStoreCluster",
    plural = "keystoreclusters",
    shortname = "ksc",
    category = "keystore",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "KeyStoreClusterStatus",
    doc = "A leaderless, replicated key-value store: the operator keeps the pods, volumes and Services of one such cluster as the spec says, and reports what it sees in the status.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas", description = "Nodes asked for"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Pods that serve"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", description = "Number of the layout in force"),
    printcolumn(name = "Layout", type_ = "string", json_path = ".status.layoutPhase", description = "Phase of the layout"),
    printcolumn(name = "Operation", type_ = "string", json_path = ".status.operation.kind", description = "The long-running change under way"),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.conditions[?(@.type==\"Available\")].status", description = "Whether every partition has its write quorum"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1, description = "The image of the storage nodes: the spec's, or the operator's default"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.storage.engine", priority = 1),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must start with a lower-case letter and hold only lower-case letters, digits and '-' (no dots, no '-' at the end): pods and Services are named after it"),
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("metadata.name must be at most 40 characters long: pods, Services and volumes add to it; choose a shorter name")
)]
#[x_kube(
    validation = Rule::new("oldSelf.hasValue() || self.replicas >= self.replicationFactor")
        .message("replicas must not be below replicationFactor when a cluster is created: raise replicas or lower replicationFactor")
        .field_path(".replicas")
        .optional_old_self(true),
    validation = Rule::new("has(self.zoneTopologyKey) == has(oldSelf.zoneTopologyKey) && (!has(self.zoneTopologyKey) || self.zoneTopologyKey == oldSelf.zoneTopologyKey)")
        .message("zoneTopologyKey cannot be changed: the nodes' zones are part of the layout since the cluster was created; set it back")
        .field_path(".zoneTopologyKey")
)]
#[serde(rename_all = "camelCase")]
pub struct KeyStoreClusterSpec {
    /// How many storage nodes (pods) the cluster has. At creation it must not be below replicationFactor. It can be
    /// changed at any time, also while an earlier change runs: data moves before pods go, and after they came. A number
    /// below replicationFactor, or one onto which the data does not fit, is held (condition Stalled) until it is changed.
    #[schemars(range(min = 1, max = REPLICAS_MAX))]
    #[serde(default = "default_replicas")]
    pub replicas: i32,

    /// How many nodes keep a copy of each key. Immutable. With 3, the store keeps serving quorum requests while one
    /// node is down; with 1 or 2, any node that is down stops the writes of its partitions.
    #[schemars(range(min = 1, max = 7))]
    #[serde(default = "default_replication_factor")]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("replicationFactor cannot be changed: set it back, or create a new cluster with the one you need"))]
    pub replication_factor: i32,

    /// Into how many partitions the keys are divided: a power of two from 16 to 4096. Immutable. The default suits
    /// clusters of up to a few dozen nodes.
    #[serde(default = "default_partitions")]
    #[x_kube(
        validation = Rule::new("self in [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]")
            .message("partitions must be a power of two from 16 to 4096, for example 256"),
        validation = Rule::new("self == oldSelf")
            .message("partitions cannot be changed: set it back, or create a new cluster with the number you need")
    )]
    pub partitions: i32,

    /// The image of the storage nodes. Default: the one that the operator was started with. Changing it restarts
    /// the pods one by one, from the highest ordinal.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// When the kubelet pulls the image: Always, IfNotPresent or Never.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// The consistency of requests that name none.
    #[serde(default)]
    pub consistency: ConsistencySpec,

    /// The named sets of keys, each with its way with concurrent writes. default (mode lww) exists also where it is
    /// not listed, and 64 is the most, default included. More can be added at any time; none can be removed or given
    /// another mode.
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[serde(default = "default_keyspaces")]
    #[x_kube(
        validation = Rule::new("self.all(k, k.name != 'default' || k.mode == 'lww')")
            .message("keyspace default always has mode lww: leave it so, and list another keyspace with the mode that you need"),
        validation = Rule::new("self.size() < 64 || self.exists(k, k.name == 'default')")
            .message("at most 64 keyspaces, and keyspace default exists beside those that are listed: list at most 63 others"),
        validation = Rule::new("oldSelf.all(old, old.name == 'default' || self.exists(k, k.name == old.name))")
            .message("a keyspace cannot be removed, its keys would be out of reach: list every keyspace that the cluster has"),
        validation = Rule::new("self.all(k, oldSelf.all(old, old.name != k.name || old.mode == k.mode))")
            .message("the mode of a keyspace cannot be changed, its keys are stored in the form of that mode: set it back, or create a new cluster")
    )]
    pub keyspaces: Vec<Keyspace>,

    /// Where and how the nodes keep their data.
    #[serde(default)]
    pub storage: StorageSpec,

    /// CPU and memory of each storage node's container. Changing them restarts the pods one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// The label of the Kubernetes nodes that names their failure domain. Pods are spread over its values where
    /// possible, and the copies of a key over as many zones as there are. Immutable.
    #[schemars(length(min = 1, max = 316))]
    #[serde(default = "default_zone_topology_key")]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')")
        .message("zoneTopologyKey must be the key of a label, for example topology.kubernetes.io/zone: letters, digits, '-', '_' and '.', after a DNS name and '/' where it has one"))]
    pub zone_topology_key: String,

    /// Settings of the storage nodes, by section, with the names of their configuration file, for example
    /// {gossip: {interval_ms: 500}, log: {level: debug}}. What the operator decides (node, listen, data_dir,
    /// consistency, gossip.cluster, gossip.seeds, storage.engine, storage.durability) is refused. A node does not
    /// start with a setting that it does not know, and its log says which. Changing them restarts the pods one by one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "config_schema")]
    #[x_kube(
        validation = Rule::new("!('node' in self) && !('listen' in self) && !('data_dir' in self)")
            .message("config.node, config.listen and config.data_dir are set by the operator: remove them"),
        validation = Rule::new("!('consistency' in self)")
            .message("config.consistency is set by the operator: use spec.consistency")
    )]
    pub config: ConfigSections,

    /// What is added to the pods: labels, annotations, scheduling, environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,

    /// After how many seconds a node that stays away is given up for good: it is marked lost, and a new node takes its
    /// place, in another pod if its own does not come back. 0: never by itself. A node is given up only while all that it
    /// holds can be had from the others.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub replace_after_seconds: i32,

    /// While true, the operator watches and reports and changes nothing. The store goes on serving.
    #[serde(default)]
    pub paused: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImagePullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// How many replicas have to answer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    One,
    #[default]
    Quorum,
    All,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsistencySpec {
    /// For reads: one, quorum or all. Below quorum, a read may miss the latest acknowledged write. Changing it
    /// restarts the pods one by one.
    #[serde(default)]
    pub read: Consistency,

    /// For writes and deletes: one, quorum or all. Below quorum, an acknowledged write may be lost with a node.
    /// Changing it restarts the pods one by one.
    #[serde(default)]
    pub write: Consistency,
}

/// What becomes of concurrent writes of one key.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum KeyspaceMode {
    #[default]
    Lww,
    Siblings,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(cel)]
pub struct Keyspace {
    /// What clients call it: lower-case letters, digits, '-' and '_', at most 63 characters.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-_a-z0-9]*[a-z0-9])?$')")
        .message("a keyspace's name holds only lower-case letters, digits, '-' and '_', and begins and ends with a letter or digit"))]
    pub name: String,

    /// What becomes of concurrent writes of one key: lww (the last write wins) or siblings (all of them are kept, and a
    /// read returns them all, until a write that has seen them replaces them). Immutable.
    #[serde(default)]
    pub mode: KeyspaceMode,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// What the scheduler sets aside for the container: cpu, memory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    pub requests: BTreeMap<String, Quantity>,

    /// What the container may use at most: cpu, memory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    pub limits: BTreeMap<String, Quantity>,
}

fn default_replicas() -> i32 {
    3
}

fn default_replication_factor() -> i32 {
    3
}

fn default_partitions() -> i32 {
    256
}

fn default_keyspaces() -> Vec<Keyspace> {
    vec![Keyspace { name: "default".to_owned(), mode: KeyspaceMode::Lww }]
}

fn default_zone_topology_key() -> String {
    "topology.kubernetes.io/zone".to_owned()
}

/// A map of free-form objects: in this form CEL sees the sections' names.
fn config_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    })
}

/// Quantities with their usual pattern; the type's own schema would explain each with two pages of grammar.
fn quantities_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        },
    })
}
