//! The nodes' configuration file, in an immutable ConfigMap named after its content.
//!
//! A changed configuration is another ConfigMap, so pods of the old and of the new revision each find their own.
//! Only this module knows YAML.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use keystore_crds::{Consistency, Durability, Engine};
use serde_json::{Value, json};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::{CONFIG_FILE, DATA_DIR, child_metadata};
use crate::names::GOSSIP_PORT;
use crate::validate::ValidCluster;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("the node configuration cannot be written as YAML")]
    Yaml(#[from] serde_yaml::Error),
}

pub fn build_config_map(cluster: &ValidCluster) -> Result<ConfigMap, ConfigError> {
    let text = serde_yaml::to_string(&settings(cluster))?;
    let hash = format!("{:010x}", xxh3_64(text.as_bytes()) >> 24);
    Ok(ConfigMap {
        metadata: child_metadata(cluster, cluster.names.config_map(&hash)),
        immutable: Some(true),
        data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), text)])),
        ..ConfigMap::default()
    })
}

/// What the operator decides, and the people's settings beside it. `validate` has seen to it that they do not meet.
fn settings(cluster: &ValidCluster) -> BTreeMap<String, Value> {
    let spec = &cluster.spec;
    let names = &cluster.names;
    let mut sections = spec.config.clone();
    let own = [
        ("gossip", "cluster", json!(format!("{}/{}", names.namespace, names.cluster))),
        ("gossip", "seeds", json!([format!("{}:{GOSSIP_PORT}", names.seeds_host())])),
        ("storage", "engine", json!(engine(spec.storage.engine))),
        ("storage", "durability", json!(durability(spec.storage.durability))),
        ("consistency", "read", json!(consistency(spec.consistency.read))),
        ("consistency", "write", json!(consistency(spec.consistency.write))),
        ("drain", "timeout_ms", json!(cluster.drain_timeout_ms)),
    ];
    for (section, setting, value) in own {
        sections.entry(section.to_owned()).or_default().insert(setting.to_owned(), value);
    }
    let mut settings: BTreeMap<_, _> =
        sections.into_iter().map(|(name, section)| (name, json!(section))).collect();
    settings.insert("data_dir".to_owned(), json!(DATA_DIR));
    settings
}

fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Sled => "sled",
        Engine::Lsm => "lsm",
        Engine::Memory => "memory",
    }
}

fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Synced => "synced",
        Durability::Periodic => "periodic",
    }
}

fn consistency(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::One => "one",
        Consistency::Quorum => "quorum",
        Consistency::All => "all",
    }
}
