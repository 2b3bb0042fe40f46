//! What the API server accepts and refuses, checked with the same CEL rules in this process.
//!
//! The evaluator knows no `optionalOldSelf`, so the one rule that has it (replicas against replicationFactor at
//! creation) is left out of comparisons with an old object; the end-to-end scenario about bad manifests covers it.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

use keystore_crds::manifest::{CLUSTER_FILE, cluster_manifest};
use keystore_crds::{
    Durability, KeyStoreCluster, Keyspace, KeyspaceMode, PodMetadata, PodSettings, StorageSpec,
};
use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};

fn cluster(name: &str, spec: &Value) -> KeyStoreCluster {
    serde_json::from_value(json!({
        "apiVersion": "keystore.dev/v1alpha1",
        "kind": "KeyStoreCluster",
        "metadata": {"name": name},
        "spec": spec,
    }))
    .unwrap()
}

/// The messages of all broken rules, in one line.
fn refusal<E: std::fmt::Display>(result: Result<(), E>) -> Option<String> {
    result.err().map(|error| error.to_string())
}

/// As `refusal`, for a change of an existing object.
fn update_refusal(old: &KeyStoreCluster, new: &KeyStoreCluster) -> Option<String> {
    let crd = serde_json::to_value(KeyStoreCluster::crd()).unwrap();
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    let rules = schema["properties"]["spec"]["x-kubernetes-validations"].as_array_mut().unwrap();
    rules.retain(|rule| rule.get("optionalOldSelf").is_none());
    let (old, new) = (serde_json::to_value(old).unwrap(), serde_json::to_value(new).unwrap());
    refusal(Validator::new().validate(&schema, &new, Some(&old)))
}

fn check(result: &Option<String>, expected: Option<&str>) {
    match (result, expected) {
        (None, None) => {}
        (Some(message), Some(part)) => assert!(message.contains(part), "{message:?} does not say {part:?}"),
        _ => panic!("expected {expected:?}, got {result:?}"),
    }
}

#[test]
fn an_empty_spec_is_a_cluster_of_three() {
    let cluster = cluster("demo", &json!({}));
    let spec = &cluster.spec;
    assert_eq!((spec.replicas, spec.replication_factor, spec.partitions), (3, 3, 256));
    assert_eq!((spec.storage.size.as_str(), spec.storage.durability), ("1Gi", Durability::Synced));
    assert_eq!(spec.zone_topology_key, "topology.kubernetes.io/zone");
    assert!(!spec.paused);
    assert_eq!(spec.keyspaces, [Keyspace { name: "default".to_owned(), mode: KeyspaceMode::Lww }]);
    check(&refusal(cluster.validate_cel()), None);
}

#[test]
fn names_that_would_make_bad_pod_names_are_refused() {
    let forty = "a".repeat(40);
    for (name, expected) in [
        ("demo", None),
        ("a", None),
        ("demo-2", None),
        (forty.as_str(), None),
        (&format!("{forty}a"), Some("at most 40 characters")),
        ("2demo", Some("start with a lower-case letter")),
        ("demo.eu", Some("no dots")),
        ("demo-", Some("no '-' at the end")),
    ] {
        check(&refusal(cluster(name, &json!({})).validate_cel()), expected);
    }
}

#[test]
fn bad_values_are_refused_at_creation() {
    for (spec, expected) in [
        (json!({"partitions": 4096}), None),
        (json!({"partitions": 100}), Some("power of two")),
        (json!({"partitions": 8}), Some("power of two")),
        (json!({"storage": {"size": "1Gi"}}), None),
        (json!({"storage": {"size": "0"}}), Some("positive quantity")),
        (json!({"storage": {"size": "-1Gi"}}), Some("positive quantity")),
        (json!({"storage": {"size": "lots"}}), Some("positive quantity")),
        (json!({"storage": {"size": "1Ki"}}), Some("at least 128Mi")),
        (json!({"storage": {"size": "0.128G"}}), Some("at least 128Mi")),
        (json!({"storage": {"size": "128Mi"}}), None),
        (json!({"storage": {"engine": "memory"}}), None),
        (json!({"storage": {"engine": "lsm"}}), None),
        (json!({"zoneTopologyKey": "a b c"}), Some("must be the key of a label")),
        (json!({"zoneTopologyKey": "/rack"}), Some("must be the key of a label")),
        (json!({"zoneTopologyKey": "example.com/"}), Some("must be the key of a label")),
        (json!({"zoneTopologyKey": "rack"}), None),
        (json!({"zoneTopologyKey": "example.com/Rack_1"}), None),
        (json!({"config": {"gossip": {"interval_ms": 500}}}), None),
        (json!({"config": {"node": {"name": "x"}}}), Some("set by the operator")),
        (json!({"config": {"listen": {}}}), Some("set by the operator")),
        (json!({"config": {"consistency": {"read": "one"}}}), Some("use spec.consistency")),
    ] {
        check(&refusal(cluster("demo", &spec).validate_cel()), expected);
    }
}

#[test]
fn what_a_running_cluster_cannot_change_is_refused_with_a_way_out() {
    let base = json!({"storage": {"size": "2Gi", "storageClassName": "fast"}});
    for (spec, expected) in [
        (json!({"replicas": 5}), None),
        (json!({"replicas": 1}), None),
        (json!({"consistency": {"read": "one"}}), None),
        (json!({"replicationFactor": 2}), Some("replicationFactor cannot be changed")),
        (json!({"partitions": 512}), Some("partitions cannot be changed")),
        (json!({"zoneTopologyKey": "rack"}), Some("zoneTopologyKey cannot be changed")),
        (json!({"storage": {"size": "1Gi"}}), Some("cannot shrink")),
        (json!({"storage": {"size": "3Gi"}}), Some("cannot grow")),
        (json!({"storage": {"size": "2048Mi"}}), None),
        (json!({"storage": {"storageClassName": "slow"}}), Some("storageClassName cannot be changed")),
        (json!({"storage": {"storageClassName": null}}), Some("storageClassName cannot be changed")),
        (json!({"storage": {"engine": "memory"}}), Some("storage.engine cannot be changed")),
    ] {
        let mut changed = base.clone();
        merge(&mut changed, &spec);
        check(&update_refusal(&cluster("demo", &base), &cluster("demo", &changed)), expected);
    }
}

#[test]
fn keyspaces_can_be_added_and_neither_removed_nor_changed() {
    let keyspaces = |list: &[(&str, &str)]| {
        let list: Vec<_> = list.iter().map(|(name, mode)| json!({"name": name, "mode": mode})).collect();
        json!({"keyspaces": list})
    };
    let many = |count: usize| -> Value {
        let list: Vec<_> = (0..count).map(|number| json!({"name": format!("k{number}")})).collect();
        json!({"keyspaces": list})
    };
    for (spec, expected) in [
        (keyspaces(&[]), None),
        (keyspaces(&[("default", "lww"), ("carts", "siblings")]), None),
        (keyspaces(&[("carts", "siblings"), ("users_2-b", "lww")]), None),
        (keyspaces(&[("default", "siblings")]), Some("keyspace default always has mode lww")),
        (keyspaces(&[("Carts", "lww")]), Some("only lower-case letters")),
        (keyspaces(&[("carts-", "lww")]), Some("begins and ends with a letter or digit")),
        (many(63), None),
        (many(64), Some("list at most 63 others")),
    ] {
        check(&refusal(cluster("demo", &spec).validate_cel()), expected);
    }

    let base = keyspaces(&[("carts", "siblings"), ("users", "lww")]);
    for (spec, expected) in [
        (keyspaces(&[("users", "lww"), ("carts", "siblings"), ("default", "lww")]), None),
        (keyspaces(&[("carts", "siblings")]), Some("a keyspace cannot be removed")),
        (json!({}), Some("a keyspace cannot be removed")),
        (keyspaces(&[("carts", "lww"), ("users", "lww")]), Some("the mode of a keyspace cannot be changed")),
        (keyspaces(&[("carts", "siblings"), ("users", "lww"), ("more", "lww")]), None),
    ] {
        check(&update_refusal(&cluster("demo", &base), &cluster("demo", &spec)), expected);
    }
    let listed = cluster("demo", &keyspaces(&[("default", "lww")]));
    check(&update_refusal(&listed, &cluster("demo", &keyspaces(&[]))), None);
}

#[test]
fn the_operators_own_labels_and_settings_are_refused_in_the_pod_template() {
    for (labels, expected) in [
        (json!({"team": "a"}), None),
        (json!({"keystore.dev/cluster": "b"}), Some("use other names")),
        (json!({"app.kubernetes.io/name": "b"}), Some("use other names")),
    ] {
        let result = PodMetadata::validate_cel(&json!({"labels": labels}), None);
        check(&refusal(result.map_err(|errors| format!("{errors:?}"))), expected);
    }
    for (name, expected) in [("TZ", None), ("KEYSTORE_DATA_DIR", Some("use spec.config"))] {
        let result = PodSettings::validate_cel(&json!({"env": [{"name": name, "value": "x"}]}), None);
        check(&refusal(result.map_err(|errors| format!("{errors:?}"))), expected);
    }
    let storage = serde_json::to_value(StorageSpec::default()).unwrap();
    check(&refusal(StorageSpec::validate_cel(&storage, Some(&storage)).map_err(|e| format!("{e:?}"))), None);
}

#[test]
fn the_committed_manifest_is_the_one_the_types_make() {
    let file = format!("{}/generated/{CLUSTER_FILE}", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let committed = std::fs::read_to_string(file).unwrap();
    assert!(committed == cluster_manifest().unwrap(), "run crdgen and commit the result");
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
