//! The part of the spec that says where and how data is kept.
//!
//! Volumes outlive pods and the resource itself, so everything that would ask for other volumes is immutable here
//! rather than found out later.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How data is stored on disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    #[default]
    Sled,
    Lsm,
    Memory,
}

/// When a write is acknowledged.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    #[default]
    Synced,
    Periodic,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(
    cel,
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("storage.storageClassName cannot be changed: volumes keep the class that they were made with; set it back")
        .field_path(".storageClassName")
)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// The storage engine: sled (records on disk, in a B-tree), lsm (records on disk, in a log-structured merge tree: for
    /// more than a million records a node), or memory (all records in memory, where reads never wait for writes; the log
    /// and snapshots on disk bring them back when a node starts, so nothing acknowledged is lost). Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("storage.engine cannot be changed, the volumes hold what it wrote: set it back, or create a new cluster with the one you need"))]
    pub engine: Engine,

    /// The size of each node's volume, for example 10Gi. It never shrinks, and this version cannot grow it either.
    #[schemars(length(min = 1, max = 32))]
    #[serde(default = "default_size")]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
            .message("storage.size must be a positive quantity, for example 10Gi"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('128Mi')) >= 0")
            .message("storage.size must be at least 128Mi: each node's log takes up to 96Mi of it before any data has room; choose a size for your data, for example 10Gi"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("storage.size cannot shrink: volumes only ever grow; set it back to what it was"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) <= 0")
            .message("storage.size cannot grow: this version does not expand volumes; set it back to what it was")
    )]
    pub size: String,

    /// The StorageClass of the volumes. Default: the cluster's default class. Immutable.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,

    /// When a write that does not say otherwise is acknowledged: synced (on the disks of as many nodes as its
    /// consistency asks for) or periodic (in their memory, synced soon after: faster, and the last moments before a
    /// power cut may be lost). Changing it restarts the pods one by one.
    #[serde(default)]
    pub durability: Durability,
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            size: default_size(),
            storage_class_name: None,
            durability: Durability::default(),
        }
    }
}

fn default_size() -> String {
    "1Gi".to_owned()
}
