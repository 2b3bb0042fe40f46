//! The objects that a cluster wants, as they are sent.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use fixtures::{cluster, plan_of, valid};
use keystore_operator_core::build::{
    build_budget, build_client_service, build_config_map, build_headless_service, build_service_account,
};
use keystore_operator_core::children::{Kind, Write};
use keystore_operator_core::observed::Observed;
use serde_json::{Value, json};

fn every_setting() -> Value {
    json!({
        "replicas": 5,
        "replicationFactor": 2,
        "image": "registry.example.com:5000/keystore-node:1.2.3@sha256:0123",
        "imagePullPolicy": "Always",
        "consistency": {"read": "one", "write": "all"},
        "storage": {"size": "20Gi", "storageClassName": "fast", "durability": "periodic"},
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}},
        "zoneTopologyKey": "example.com/rack",
        "config": {"gossip": {"interval_ms": 250}, "log": {"level": "debug"}, "drain": {"timeout_ms": 5000}},
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"example.com/note": "b"}},
            "spec": {
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "dedicated", "operator": "Exists"}],
                "priorityClassName": "high",
                "imagePullSecrets": [{"name": "registry"}],
                "env": [{"name": "TZ", "value": "UTC"}],
                "terminationGracePeriodSeconds": 20,
                "topologySpreadConstraints": [
                    {"maxSkew": 2, "topologyKey": "example.com/rack", "whenUnsatisfiable": "DoNotSchedule"},
                ],
            },
        },
    })
}

fn stateful_set(spec: &Value) -> Value {
    let plan = plan_of(&cluster(spec, None), &Observed::default());
    let find = |write: Write| match write {
        Write::Apply { kind: Kind::StatefulSet, object, .. } => Some(object),
        Write::Apply { .. } | Write::DeleteConfigMap { .. } | Write::DeletePod { .. } => None,
    };
    plan.writes.into_iter().find_map(find).unwrap()
}

#[test]
fn the_children_of_a_minimal_cluster() {
    let cluster = valid(&json!({}));
    insta::assert_yaml_snapshot!("service_account", build_service_account(&cluster));
    insta::assert_yaml_snapshot!("headless_service", build_headless_service(&cluster));
    insta::assert_yaml_snapshot!("client_service", build_client_service(&cluster));
    insta::assert_yaml_snapshot!("budget", build_budget(&cluster));
    insta::assert_yaml_snapshot!("config_map", build_config_map(&cluster).unwrap());
    insta::assert_yaml_snapshot!("stateful_set", stateful_set(&json!({})));
}

#[test]
fn every_setting_of_the_spec_reaches_its_object() {
    insta::assert_yaml_snapshot!(
        "every_setting_config_map",
        build_config_map(&valid(&every_setting())).unwrap()
    );
    insta::assert_yaml_snapshot!("every_setting_stateful_set", stateful_set(&every_setting()));
}

#[test]
fn a_changed_configuration_is_another_config_map() {
    let name = |spec: &Value| build_config_map(&valid(spec)).unwrap().metadata.name.unwrap();
    assert_eq!(name(&json!({})), name(&json!({"replicas": 5})));
    assert_ne!(name(&json!({})), name(&json!({"config": {"log": {"level": "debug"}}})));
}

#[test]
fn one_zone_key_is_not_spread_over_twice() {
    let set = stateful_set(&json!({"zoneTopologyKey": "kubernetes.io/hostname"}));
    let spread = set.pointer("/spec/template/spec/topologySpreadConstraints").unwrap();
    assert_eq!(spread.as_array().unwrap().len(), 1);
}
