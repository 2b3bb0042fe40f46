//! The custom resources of KeyStore: their types, schemas, defaults and validation rules.
//!
//! What people may type is decided here and enforced by the API server, from the schema and CEL rules that
//! `crdgen` writes to `generated/`; there is no webhook. What a field makes the operator do is `operator-core`'s.
//! Invariant: a field that does nothing is not in the schema.

#![allow(unreachable_pub, reason = "derive(KubeSchema) repeats its structs inside a function")]

pub mod manifest;
mod pod_template;
mod spec;
mod status;
mod storage;

pub use pod_template::{PodMetadata, PodSettings, PodTemplate};
pub use spec::{
    ConfigSections, Consistency, ConsistencySpec, ImagePullPolicy, KeyStoreCluster, KeyStoreClusterSpec,
    Keyspace, KeyspaceMode, REPLICAS_MAX, Resources,
};
pub use status::{
    ConditionType, KeyStoreClusterStatus, LayoutPhase, NodeState, NodeStatus, Operation, OperationKind,
};
pub use storage::{Durability, Engine, StorageSpec};

/// The API group of every resource in this crate.
pub const GROUP: &str = "keystore.dev";
