//! From the resource as people wrote it to a value that every later step can rely on.
//!
//! The API server has checked the schema and the CEL rules; what those cannot see (into free-form settings, across
//! to the operator's own flags) is refused here, with a sentence that says what to change.

use std::collections::BTreeMap;

use keystore_core::layout::{
    KEYSPACE_NAME_MAX, KEYSPACES_MAX, KeyspaceMode, REPLICATION_FACTOR_MAX, is_keyspace_name,
};
use keystore_core::partition::{DEFAULT_KEYSPACE, PartitionCount};
use keystore_crds::{KeyStoreCluster, KeyStoreClusterSpec, Keyspace, REPLICAS_MAX};
use thiserror::Error;

use crate::names::Names;

/// How long a pod may take to stop, in seconds, unless the spec says otherwise.
pub const GRACE_SECONDS: i64 = 60;
/// How much of that is left to the kubelet and to syncing after requests were drained.
const GRACE_RESERVE_SECONDS: i64 = 10;
/// How long a node goes on serving after it was told to stop, unless `drain.grace_ms` says otherwise.
const NODE_NOTICE_MS: i64 = 3_000;
/// Draining longer than this helps nobody.
const DRAIN_SECONDS_MAX: i64 = 30;

/// Settings below a section that also has settings which people may use.
const PROTECTED: [(&str, &str, &str); 4] = [
    ("gossip", "cluster", "it follows from the resource's namespace and name"),
    ("gossip", "seeds", "they follow from the resource's namespace and name"),
    ("storage", "engine", "use spec.storage.engine"),
    ("storage", "durability", "use spec.storage.durability"),
];

/// Sections and settings that are wholly the operator's.
const PROTECTED_SECTIONS: [&str; 4] = ["node", "listen", "data_dir", "consistency"];

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidSpec {
    #[error("the resource has no {0}; it was not read from an API server")]
    Metadata(&'static str),
    #[error("spec.replicas is {0}: set it to a number from 1 to {REPLICAS_MAX}")]
    Replicas(i32),
    #[error("spec.replicationFactor is {0}: it has to be a number from 1 to {REPLICATION_FACTOR_MAX}")]
    ReplicationFactor(i32),
    #[error("spec.partitions is {0}: it has to be a power of two from 16 to 4096")]
    Partitions(i32),
    #[error(
        "spec.keyspaces: a keyspace's name has up to {KEYSPACE_NAME_MAX} lower-case letters, digits, '-' and '_', with a \
         letter or digit at both ends, and {0:?} has not: choose another name"
    )]
    KeyspaceName(String),
    #[error("spec.keyspaces names {0} more than once: name it once")]
    KeyspaceTwice(String),
    #[error(
        "spec.keyspaces names {0} keyspaces, {DEFAULT_KEYSPACE} included: at most {KEYSPACES_MAX} can be"
    )]
    Keyspaces(usize),
    #[error("spec.keyspaces gives {DEFAULT_KEYSPACE} another mode: it always has mode lww")]
    DefaultKeyspace,
    #[error(
        "spec.replaceAfterSeconds is {0}: set it to the seconds after which a node is given up, or to 0 for never"
    )]
    ReplaceAfter(i32),
    #[error("spec.config.{section} is set by the operator: remove it")]
    ProtectedSection { section: String },
    #[error("spec.config.{section}.{setting} is set by the operator ({instead}): remove it")]
    ProtectedSetting { section: &'static str, setting: &'static str, instead: &'static str },
    #[error(
        "spec.config.drain: grace_ms and timeout_ms have to be numbers whose sum is below {grace_ms}, the pods' grace \
         period in ms: lower them or raise spec.podTemplate.spec.terminationGracePeriodSeconds"
    )]
    Drain { grace_ms: i64 },
}

/// A spec that has been checked.
#[derive(Debug, Clone)]
pub struct ValidCluster {
    pub names: Names,
    pub uid: String,
    pub generation: i64,
    pub replicas: u32,
    pub replication_factor: usize,
    pub partitions: PartitionCount,
    /// All that the store has, the default one among them.
    pub keyspaces: BTreeMap<String, KeyspaceMode>,
    pub image: String,
    /// For how long a member may be away before it is given up; `None`: for ever.
    pub replace_after_seconds: Option<u32>,
    pub grace_seconds: i64,
    pub drain_timeout_ms: i64,
    /// Nobody asked for this: the nodes stay where the layout in force says that they are to be.
    pub is_stand_in: bool,
    /// The rest, whose every value is fine as it is.
    pub spec: KeyStoreClusterSpec,
}

/// Checks a resource. `default_image` is what nodes run whose spec names no image.
pub fn validate(cluster: &KeyStoreCluster, default_image: &str) -> Result<ValidCluster, InvalidSpec> {
    let (names, uid) = identify(cluster)?;
    let spec = cluster.spec.clone();
    check_protected(&spec)?;
    let grace_seconds = pod_grace_seconds(&spec);
    Ok(ValidCluster {
        names,
        uid,
        generation: cluster.metadata.generation.unwrap_or_default(),
        replicas: within(spec.replicas, REPLICAS_MAX).ok_or(InvalidSpec::Replicas(spec.replicas))?,
        replication_factor: within(spec.replication_factor, REPLICATION_FACTOR_MAX)
            .map(|factor| factor as usize)
            .ok_or(InvalidSpec::ReplicationFactor(spec.replication_factor))?,
        partitions: u32::try_from(spec.partitions)
            .ok()
            .and_then(|count| PartitionCount::new(count).ok())
            .ok_or(InvalidSpec::Partitions(spec.partitions))?,
        keyspaces: keyspaces(&spec)?,
        image: spec.image.clone().unwrap_or_else(|| default_image.to_owned()),
        replace_after_seconds: replace_after_seconds(&spec)?,
        grace_seconds,
        drain_timeout_ms: drain_timeout_ms(&spec, grace_seconds)?,
        is_stand_in: false,
        spec,
    })
}

/// The names and UID of a resource that was read from an API server.
pub fn identify(cluster: &KeyStoreCluster) -> Result<(Names, String), InvalidSpec> {
    let metadata = &cluster.metadata;
    let names = Names {
        namespace: metadata.namespace.clone().ok_or(InvalidSpec::Metadata("namespace"))?,
        cluster: metadata.name.clone().ok_or(InvalidSpec::Metadata("name"))?,
    };
    Ok((names, metadata.uid.clone().ok_or(InvalidSpec::Metadata("uid"))?))
}

fn within(value: i32, max: usize) -> Option<u32> {
    u32::try_from(value).ok().filter(|value| (1..=max).contains(&(*value as usize)))
}

fn replace_after_seconds(spec: &KeyStoreClusterSpec) -> Result<Option<u32>, InvalidSpec> {
    let seconds = spec.replace_after_seconds;
    let seconds = u32::try_from(seconds).map_err(|_| InvalidSpec::ReplaceAfter(seconds))?;
    Ok((seconds > 0).then_some(seconds))
}

fn keyspaces(spec: &KeyStoreClusterSpec) -> Result<BTreeMap<String, KeyspaceMode>, InvalidSpec> {
    let mut keyspaces = BTreeMap::new();
    for Keyspace { name, mode } in &spec.keyspaces {
        if !is_keyspace_name(name) {
            return Err(InvalidSpec::KeyspaceName(name.clone()));
        }
        let mode = match mode {
            keystore_crds::KeyspaceMode::Lww => KeyspaceMode::Lww,
            keystore_crds::KeyspaceMode::Siblings => KeyspaceMode::Siblings,
        };
        if keyspaces.insert(name.clone(), mode).is_some() {
            return Err(InvalidSpec::KeyspaceTwice(name.clone()));
        }
    }
    if *keyspaces.entry(DEFAULT_KEYSPACE.to_owned()).or_insert(KeyspaceMode::Lww) != KeyspaceMode::Lww {
        return Err(InvalidSpec::DefaultKeyspace);
    }
    let count = keyspaces.len();
    if count > KEYSPACES_MAX { Err(InvalidSpec::Keyspaces(count)) } else { Ok(keyspaces) }
}

fn check_protected(spec: &KeyStoreClusterSpec) -> Result<(), InvalidSpec> {
    if let Some(section) = PROTECTED_SECTIONS.iter().find(|section| spec.config.contains_key(**section)) {
        return Err(InvalidSpec::ProtectedSection { section: (*section).to_owned() });
    }
    let named = |section: &str, setting: &str| {
        spec.config.get(section).is_some_and(|settings| settings.contains_key(setting))
    };
    match PROTECTED.into_iter().find(|(section, setting, _)| named(section, setting)) {
        Some((section, setting, instead)) => Err(InvalidSpec::ProtectedSetting { section, setting, instead }),
        None => Ok(()),
    }
}

fn pod_grace_seconds(spec: &KeyStoreClusterSpec) -> i64 {
    let settings = spec.pod_template.as_ref().and_then(|template| template.spec.as_ref());
    settings.and_then(|settings| settings.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS)
}

/// Draining has to end before the kubelet kills, whoever chose the numbers.
fn drain_timeout_ms(spec: &KeyStoreClusterSpec, grace_seconds: i64) -> Result<i64, InvalidSpec> {
    let setting = |name: &str| spec.config.get("drain").and_then(|drain| drain.get(name));
    let too_long = InvalidSpec::Drain { grace_ms: grace_seconds * 1000 };
    let number = |value: Option<&serde_json::Value>, default| match value {
        None => Some(default),
        Some(value) => value.as_i64().filter(|ms| *ms >= 0),
    };
    let default = (grace_seconds - GRACE_RESERVE_SECONDS).clamp(1, DRAIN_SECONDS_MAX) * 1000;
    let (Some(timeout), Some(notice)) =
        (number(setting("timeout_ms"), default), number(setting("grace_ms"), NODE_NOTICE_MS))
    else {
        return Err(too_long);
    };
    if timeout.saturating_add(notice) < grace_seconds * 1000 { Ok(timeout) } else { Err(too_long) }
}
