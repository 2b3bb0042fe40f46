//! The objects that a cluster wants, each built by a pure function of the validated spec.
//!
//! What is applied when, and whether at all, is `plan`'s. Invariant: equal input makes equal objects, and an object
//! never names a field that the operator does not mean to own.

mod config_map;
mod pod;
mod services;
mod stateful_set;

pub use config_map::{ConfigError, build_config_map};
pub use pod::{NODE_CONTAINER, build_pod_template, node_image};
pub use services::{build_budget, build_client_service, build_headless_service, build_service_account};
pub use stateful_set::{StatefulSetInput, build_stateful_set};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keystore_crds::KeyStoreCluster;
use kube::Resource;

use crate::validate::ValidCluster;

/// Where the volume is mounted in a node's container.
pub const DATA_DIR: &str = "/var/lib/keystore";
/// Where the configuration is, and its name there.
pub const CONFIG_DIR: &str = "/etc/keystore";
pub const CONFIG_FILE: &str = "keystore.yaml";

/// Name, labels and owner of a child. Deleting the resource lets Kubernetes collect its children.
fn child_metadata(cluster: &ValidCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.names.namespace.clone()),
        labels: Some(labels(cluster)),
        owner_references: Some(vec![OwnerReference {
            api_version: KeyStoreCluster::api_version(&()).into_owned(),
            kind: KeyStoreCluster::kind(&()).into_owned(),
            name: cluster.names.cluster.clone(),
            uid: cluster.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

fn labels(cluster: &ValidCluster) -> std::collections::BTreeMap<String, String> {
    let mut labels = cluster.names.labels();
    if let Some(version) = image_version(&cluster.image) {
        labels.insert("app.kubernetes.io/version".to_owned(), version);
    }
    labels
}

/// The image's tag, where it has one that may stand in a label.
fn image_version(image: &str) -> Option<String> {
    let (name, _digest) = image.split_once('@').unwrap_or((image, ""));
    let (_, tag) = name.rsplit('/').next()?.rsplit_once(':')?;
    let ends_well = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    (tag.len() <= 63 && ends_well(tag)).then(|| tag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_label_is_the_images_tag() {
        for (image, expected) in [
            ("keystore.dev/keystore-node:0.1.0", Some("0.1.0")),
            ("registry:5000/keystore-node", None),
            ("registry:5000/keystore-node:1@sha256:abc", Some("1")),
            ("keystore-node@sha256:abc", None),
            ("keystore-node:_x", None),
        ] {
            assert_eq!(image_version(image).as_deref(), expected, "{image}");
        }
    }
}
