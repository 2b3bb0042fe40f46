//! What a person reads of a cluster in each state, and which events tell of the way there.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use fixtures::{
    CLUSTER, IMAGE, OTHER_CLUSTER, accepted, at_rest, cluster, condition, decided, empty, healthy, look, of,
    plan_of, plan_with_image, remembers, serving, settle, status_of,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use keystore_core::id::NodeId;
use keystore_crds::KeyStoreClusterStatus;
use keystore_operator_core::events::plan_events;
use keystore_operator_core::observed::{NodeAnswer, NodeMode, Observed};
use keystore_operator_core::status::{StatusInput, plan_status};
use keystore_operator_core::validate::validate;
use serde_json::{Value, json};

/// The status after a look at a cluster whose children are as wanted.
fn seen(
    spec: &Value,
    remembered: Option<KeyStoreClusterStatus>,
    mut observed: Observed,
) -> KeyStoreClusterStatus {
    let cluster = cluster(spec, remembered);
    let plan = plan_of(&cluster, &observed);
    settle(&mut observed, &plan);
    status_of(&cluster, &observed, 0)
}

#[test]
fn a_status_at_rest_does_not_change() {
    let (cluster, observed) = at_rest(&json!({}));
    assert_eq!(status_of(&cluster, &observed, 1_000), cluster.status.unwrap());
}

#[test]
fn a_healthy_cluster_is_ready_and_a_snapshot_shows_all_of_it() {
    let (cluster, _) = at_rest(&json!({}));
    insta::assert_yaml_snapshot!("healthy", cluster.status.unwrap());
}

#[test]
fn a_new_cluster_says_what_it_waits_for() {
    let new = seen(&json!({}), None, look(vec![Some(empty(0)), None, None], None));
    assert_eq!(condition(&new, "Ready"), "False Initializing: waiting for demo-1, demo-2 to answer");
    assert!(condition(&new, "Progressing").starts_with("True Creating"));
    assert!(condition(&new, "Available").starts_with("False NotInitialized"));
    assert!(condition(&new, "Degraded").starts_with("False"));
    assert_eq!((new.cluster_id, new.epoch), (None, None));

    let named = seen(&json!({}), None, look(vec![Some(empty(0)), Some(empty(1)), Some(empty(2))], None));
    assert!(named.cluster_id.is_some(), "recorded before any node learns of it");

    let accepts = |ordinal| Some(of(CLUSTER, NodeMode::Accepted, ordinal));
    let half =
        seen(&json!({}), remembers(CLUSTER, None), look(vec![accepts(0), accepts(1), None], accepted()));
    assert!(condition(&half, "Ready").starts_with("False Initializing"));
    assert_eq!(half.operation.unwrap().phase, "Initializing");
    assert_eq!(half.epoch, None);
}

#[test]
fn a_pod_that_is_not_ready_yet_is_no_alarm_the_first_time() {
    let mut observed = look(vec![Some(serving(0)), Some(serving(1)), Some(serving(2))], decided());
    observed.pods.remove(&1);
    let new = seen(&json!({}), remembers(CLUSTER, None), observed.clone());
    assert_eq!(condition(&new, "Progressing"), "True Creating: waiting for demo-1 to be ready");
    assert!(condition(&new, "Degraded").starts_with("False"));

    let later = seen(&json!({}), remembers(CLUSTER, Some(1)), observed);
    assert_eq!(condition(&later, "Degraded"), "True NodeDown: waiting for demo-1 to be ready");
    assert!(condition(&later, "Progressing").starts_with("False"));
}

#[test]
fn nodes_that_serve_without_reaching_each_other_are_not_ready() {
    let alone = |ordinal| Some(NodeAnswer { partitions_available: 0, ..serving(ordinal) });
    let served = || remembers(CLUSTER, Some(1));
    let one = seen(&json!({}), served(), look(vec![alone(0), Some(serving(1)), Some(serving(2))], decided()));
    assert_eq!(condition(&one, "Degraded"), "True NodeDown: waiting for demo-0 to reach the other nodes");
    assert!(condition(&one, "Available").starts_with("True"));
    let all = seen(&json!({}), served(), look(vec![alone(0), alone(1), alone(2)], decided()));
    assert!(condition(&all, "Available").starts_with("False QuorumLost: 256 of 256"));
    let new = seen(&json!({}), None, look(vec![alone(0), alone(1), alone(2)], decided()));
    assert!(
        condition(&new, "Ready")
            .starts_with("False Initializing: waiting for demo-0, demo-1, demo-2 to reach")
    );
}

#[test]
fn a_node_that_is_down_degrades_and_the_quorum_decides_on_available() {
    let served = || remembers(CLUSTER, Some(1));
    let one = seen(&json!({}), served(), look(vec![Some(serving(0)), None, Some(serving(2))], decided()));
    assert_eq!(condition(&one, "Degraded"), "True NodeDown: demo-1 does not serve");
    assert!(condition(&one, "Available").starts_with("True QuorumAvailable"));
    assert!(condition(&one, "Ready").starts_with("False Degraded"));

    let two = seen(&json!({}), served(), look(vec![Some(serving(0)), None, None], decided()));
    assert_eq!(
        condition(&two, "Available"),
        "False QuorumLost: 256 of 256 partitions lack their write quorum"
    );

    let mut silent = seen(&json!({}), served(), look(vec![None, None, None], None));
    assert!(condition(&silent, "Available").starts_with("Unknown NodesUnreachable"));
    assert!(condition(&silent, "Degraded").starts_with("True NodeDown: demo-0, demo-1, demo-2"));
    assert_eq!((silent.epoch, silent.operation.take()), (Some(1), None));
}

#[test]
fn a_node_that_lost_its_volume_is_named_and_nothing_is_hidden() {
    let fresh = NodeAnswer { node: NodeId([0x77; 16]), ..empty(1) };
    let status = seen(
        &json!({}),
        remembers(CLUSTER, Some(1)),
        look(vec![Some(serving(0)), Some(fresh), Some(serving(2))], decided()),
    );
    assert!(condition(&status, "Degraded").starts_with("True NodeReplaced: what demo-1 held is gone"));
    assert!(condition(&status, "Available").starts_with("True"));

    let all = vec![Some(empty(0)), Some(empty(1)), Some(empty(2))];
    let status = seen(&json!({}), remembers(CLUSTER, Some(1)), look(all, None));
    assert!(condition(&status, "Degraded").starts_with("True NodeReplaced: every node"));
    assert!(condition(&status, "Available").starts_with("False QuorumLost"));
    assert_eq!(status.cluster_id, Some(CLUSTER.to_string()));
}

#[test]
fn what_waits_for_a_person_is_stalled_and_not_ready() {
    let scaled = seen(
        &json!({"replicas": 2}),
        remembers(CLUSTER, Some(1)),
        look(vec![Some(serving(0)), Some(serving(1)), Some(serving(2))], decided()),
    );
    assert!(condition(&scaled, "Stalled").starts_with("True BelowReplicationFactor"));
    assert!(condition(&scaled, "Ready").starts_with("False Held: spec.replicas is 2"));
    assert!(condition(&scaled, "Progressing").starts_with("False Idle"));
    assert!(condition(&scaled, "Available").starts_with("True"));

    let foreign = Some(of(OTHER_CLUSTER, NodeMode::Serving, 1));
    let status =
        seen(&json!({}), remembers(CLUSTER, Some(1)), look(vec![Some(serving(0)), foreign, None], decided()));
    assert!(condition(&status, "Stalled").starts_with("True IdentityConflict"));
    assert!(condition(&status, "Available").starts_with("Unknown"));
}

#[test]
fn settings_that_are_the_operators_are_refused_with_what_to_do() {
    for (config, expected) in [
        (json!({"gossip": {"seeds": ["x:1"]}}), "spec.config.gossip.seeds is set by the operator"),
        (json!({"storage": {"engine": "sled"}}), "use spec.storage.engine"),
        (json!({"node": {"name": "x"}}), "spec.config.node is set by the operator"),
        (json!({"drain": {"timeout_ms": 58_000}}), "lower them or raise"),
        (json!({"drain": {"timeout_ms": "soon"}}), "lower them or raise"),
    ] {
        let error = validate(&cluster(&json!({"config": config}), None), "image").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(validate(&cluster(&json!({"config": {"drain": {"timeout_ms": 40_000}}}), None), "image").is_ok());
}

#[test]
fn keyspaces_that_no_store_can_have_are_refused_with_what_to_do() {
    let many: Vec<_> = (0..64).map(|number| json!({"name": format!("k{number}")})).collect();
    for (keyspaces, expected) in [
        (json!([{"name": "a"}, {"name": "a", "mode": "siblings"}]), "names a more than once"),
        (json!([{"name": "default", "mode": "siblings"}]), "it always has mode lww"),
        (json!([{"name": ""}]), "choose another name"),
        (json!(many), "names 65 keyspaces, default included: at most 64"),
    ] {
        let spec = json!({"keyspaces": keyspaces});
        let error = validate(&cluster(&spec, None), "image").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn why_a_pod_does_not_run_is_in_the_conditions() {
    let crashing: Pod = serde_json::from_value(json!({"status": {"containerStatuses": [{
        "name": "keystore-node", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 2, "message": "keystore-node: log.levle: no such setting"}},
    }]}}))
    .unwrap();
    let why = "; demo-1: the node ended with exit status 2, its configuration is refused: change spec.config: \
               keystore-node: log.levle: no such setting";
    let mut new = look(vec![Some(empty(0)), None, Some(empty(2))], None);
    new.pods.insert(1, crashing.clone());
    let new = seen(&json!({}), None, new);
    assert_eq!(condition(&new, "Ready"), format!("False Initializing: waiting for demo-1 to answer{why}"));

    let mut served = look(vec![Some(serving(0)), None, Some(serving(2))], decided());
    served.pods.insert(1, crashing);
    let served = seen(&json!({}), remembers(CLUSTER, Some(1)), served);
    assert_eq!(condition(&served, "Degraded"), format!("True NodeDown: demo-1 does not serve{why}"));
}

#[test]
fn the_image_is_the_one_that_the_pods_run() {
    let (resource, observed) = at_rest(&json!({}));
    let image = |observed: &Observed, image: &str| {
        let valid = validate(&resource, image).unwrap();
        let plan = plan_with_image(&resource, observed, image);
        let now = Timestamp::from_second(9).unwrap();
        plan_status(StatusInput { cluster: &resource, valid: &valid, observed, plan: &plan, now }).image
    };
    assert_eq!(resource.status.as_ref().unwrap().image.as_deref(), Some(IMAGE));
    assert_eq!(image(&observed, "newer:2").as_deref(), Some(IMAGE), "it waits for an approval");
    assert_eq!(image(&healthy(), "newer:2").as_deref(), Some("newer:2"));
}

#[test]
fn each_start_end_and_hold_is_one_event() {
    let reasons = |old: Option<&KeyStoreClusterStatus>, new: &KeyStoreClusterStatus| -> Vec<String> {
        let mark = |warns| if warns { "!" } else { "" };
        plan_events(old, new).into_iter().map(|e| format!("{}{}", mark(e.is_warning), e.reason)).collect()
    };
    let (resource, observed) = at_rest(&json!({}));
    let rest = resource.status.clone().unwrap();
    let new = seen(&json!({}), None, look(vec![None, None, None], None));
    assert_eq!(reasons(None, &new), ["Creating"]);
    assert_eq!(reasons(Some(&new), &rest), ["Ready", "Created"]);
    assert_eq!(reasons(Some(&rest), &rest), Vec::<String>::new());

    let down = Observed {
        children: observed.children.clone(),
        ..look(vec![Some(serving(0)), None, None], decided())
    };
    let down = status_of(&resource, &down, 5);
    assert_eq!(reasons(Some(&rest), &down), ["!QuorumLost", "!NodeDown"]);
    assert_eq!(reasons(Some(&down), &rest), ["Ready", "Recovered"]);
}
