//! What is written, what is held, and that a cluster at rest is left alone.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use fixtures::{
    CLUSTER, IMAGE, OTHER_CLUSTER, at_rest, cluster, decided, empty, healthy, layout, look, node, of,
    plan_of, plan_with_image, remembers, serving, settle, status_of,
};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use keystore_core::layout::KeyspaceMode;
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::children::Write;
use keystore_operator_core::hold::HoldReason;
use keystore_operator_core::identity::Identity;
use keystore_operator_core::names::APPROVE_ANNOTATION;
use keystore_operator_core::observed::{Answer, HeldLayout, NodeAnswer, NodeMode, Observed};
use keystore_operator_core::plan::{NodeStep, Plan};
use serde_json::{Value, json};

/// `Kind name` of each write.
fn writes(plan: &Plan) -> Vec<String> {
    let describe = |write: &Write| match write {
        Write::Apply { kind, name, .. } => format!("{kind} {name}"),
        Write::DeleteConfigMap { name, .. } | Write::DeletePod { name, .. } => format!("delete {name}"),
    };
    plan.writes.iter().map(describe).collect()
}

fn changed(cluster: &KeyStoreCluster, spec: &Value) -> KeyStoreCluster {
    let mut all = serde_json::to_value(&cluster.spec).unwrap();
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    KeyStoreCluster { spec: serde_json::from_value(all).unwrap(), ..cluster.clone() }
}

#[test]
fn a_new_cluster_gets_its_children_in_an_order_in_which_pods_find_them() {
    let plan = plan_of(&cluster(&json!({}), None), &Observed::default());
    let config = plan.writes.iter().find_map(|write| match write {
        Write::Apply { name, .. } if name.starts_with("demo-config-") => Some(name.clone()),
        Write::Apply { .. } | Write::DeleteConfigMap { .. } | Write::DeletePod { .. } => None,
    });
    assert_eq!(
        writes(&plan),
        [
            "ServiceAccount demo".to_owned(),
            format!("ConfigMap {}", config.unwrap()),
            "Service demo-nodes".to_owned(),
            "Service demo".to_owned(),
            "PodDisruptionBudget demo".to_owned(),
            "StatefulSet demo".to_owned(),
        ]
    );
}

#[test]
fn a_cluster_at_rest_is_left_alone() {
    for spec in [
        json!({}),
        json!({"resources": {"requests": {"cpu": "1000m", "memory": "0.5Gi"}}, "storage": {"size": "1024Mi"}}),
        json!({"podTemplate": {"spec": {"env": [{"name": "EMPTY", "value": ""}], "nodeSelector": {"a": "b"}}}}),
    ] {
        let (cluster, observed) = at_rest(&spec);
        let plan = plan_of(&cluster, &observed);
        assert_eq!(writes(&plan), Vec::<String>::new());
        assert_eq!((plan.node_step, plan.hold, plan.pending_update), (NodeStep::Nothing, None, None));
    }
}

#[test]
fn what_others_change_or_delete_is_put_back() {
    let (cluster, observed) = at_rest(&json!({}));
    let check = |name: &str, edit: fn(&mut Observed), expected: &[&str]| {
        let mut edited = observed.clone();
        edit(&mut edited);
        assert_eq!(writes(&plan_of(&cluster, &edited)), expected, "{name}");
    };
    check("deleted Service", |seen| seen.children.client_service = None, &["Service demo"]);
    check("deleted StatefulSet", |seen| seen.children.stateful_set = None, &["StatefulSet demo"]);
    check(
        "edited label",
        |seen| {
            let labels = seen.children.budget.as_mut().unwrap().metadata.labels.as_mut().unwrap();
            labels.insert("keystore.dev/cluster".into(), "other".into());
        },
        &["PodDisruptionBudget demo"],
    );
    check("scaled by hand", |seen| scale_by_hand(seen, 1), &["StatefulSet demo"]);
    check(
        "added label",
        |seen| {
            let labels = seen.children.budget.as_mut().unwrap().metadata.labels.as_mut().unwrap();
            labels.insert("team".into(), "a".into());
        },
        &[],
    );
}

#[test]
fn a_setting_that_is_taken_away_is_applied_though_no_wanted_field_differs() {
    let (before, observed) = at_rest(&json!({"podTemplate": {"spec": {"nodeSelector": {"disk": "ssd"}}}}));
    let after = changed(&before, &json!({"podTemplate": null}));
    assert_eq!(writes(&plan_of(&after, &observed)), ["StatefulSet demo"]);
}

#[test]
fn silence_never_scales_anything_away() {
    let (before, observed) = at_rest(&json!({}));
    let silent = Observed { children: observed.children, ..look(vec![None, None, None], None) };
    let after = changed(&before, &json!({"replicas": 1, "replicationFactor": 1}));
    assert_eq!(plan_of(&after, &silent).replicas, 3);

    let forgotten = KeyStoreCluster { status: None, ..after };
    assert_eq!(plan_of(&forgotten, &silent).replicas, 3, "the status was lost too");

    let mut scaled_away = silent;
    scale_by_hand(&mut scaled_away, 0);
    assert_eq!(plan_of(&before, &scaled_away).replicas, 3, "the status still knows the members");
}

fn scale_by_hand(observed: &mut Observed, replicas: i32) {
    observed.children.stateful_set.as_mut().unwrap().spec.as_mut().unwrap().replicas = Some(replicas);
}

#[test]
fn an_old_volume_of_another_store_changes_nothing_while_the_others_are_silent() {
    let (before, observed) = at_rest(&json!({}));
    let other = HeldLayout { layout: layout(OTHER_CLUSTER, 1), decided: true };
    let answers = vec![Some(of(OTHER_CLUSTER, NodeMode::Serving, 0)), None, None];
    let mut seen = Observed { children: observed.children, ..look(answers, Some(other)) };
    // Something to put back, were it not for the conflict.
    seen.children.client_service = None;
    let plan = plan_of(&before, &seen);
    assert_eq!((plan.replicas, writes(&plan), plan.node_step), (3, Vec::new(), NodeStep::Nothing));
    let hold = plan.hold.unwrap();
    assert_eq!(hold.reason, HoldReason::IdentityConflict);
    let expected = format!(
        "the status names store {CLUSTER}, and no node that answers holds it (demo-0: store {OTHER_CLUSTER}); another"
    );
    assert!(hold.message.starts_with(&expected), "{}", hold.message);
    let both = vec![Some(of(OTHER_CLUSTER, NodeMode::Serving, 0)), Some(serving(1)), Some(serving(2))];
    let seen_both = look(both, decided());
    assert_eq!(
        plan_of(&before, &seen_both).hold.unwrap().message,
        format!(
            "the volumes hold 2 different stores (demo-1, demo-2: store {CLUSTER} (the one that the status names); demo-0: \
             store {OTHER_CLUSTER}); nothing is touched until only those of one are left: of each pod of another one, copy \
             what you need, then delete its claim (data-POD) and the pod"
        )
    );
    let (old, new) = (before.status.clone().unwrap(), status_of(&before, &seen, 5));
    assert_eq!((new.cluster_id, new.epoch, new.nodes), (old.cluster_id, old.epoch, old.nodes));
}

#[test]
fn pods_beyond_the_members_go_only_while_every_member_answers() {
    let (before, observed) = at_rest(&json!({}));
    let moved = || Some(NodeAnswer { node: node(1), ..serving(4) });
    for (name, answers, expected) in [
        ("all answer", vec![Some(serving(0)), Some(serving(1)), Some(serving(2)), None, Some(empty(4))], 3),
        ("one is silent", vec![Some(serving(0)), None, Some(serving(2)), Some(empty(3)), Some(empty(4))], 5),
        ("one answers elsewhere", vec![Some(serving(0)), None, Some(serving(2)), None, moved()], 5),
        ("one was replaced", vec![Some(serving(0)), Some(empty(7)), Some(serving(2)), None, None], 5),
    ] {
        let mut seen = Observed { children: observed.children.clone(), ..look(answers, decided()) };
        scale_by_hand(&mut seen, 5);
        let plan = plan_of(&before, &seen);
        let written = plan.writes.iter().find_map(|write| match write {
            Write::Apply { object, .. } => object.pointer("/spec/replicas").and_then(Value::as_u64),
            Write::DeleteConfigMap { .. } | Write::DeletePod { .. } => None,
        });
        assert_eq!((plan.replicas, written), (expected, Some(expected.into())), "{name}");
    }
}

#[test]
fn before_anything_exists_people_may_change_their_mind() {
    let three_of_five = look(vec![Some(empty(0)), Some(empty(1)), Some(empty(2)), None, None], None);
    let plan = plan_of(&cluster(&json!({"replicas": 3}), None), &three_of_five);
    assert_eq!(plan.replicas, 3);
    assert!(matches!(plan.node_step, NodeStep::RecordCluster(_)));

    let below = cluster(&json!({"replicas": 2}), remembers(CLUSTER, None));
    let plan = plan_of(&below, &look(vec![Some(empty(0)), Some(empty(1))], None));
    assert_eq!(plan.node_step, NodeStep::Nothing);
    assert_eq!(plan.hold.unwrap().reason, HoldReason::BelowReplicationFactor);
}

#[test]
fn volumes_of_another_shape_are_adopted_and_the_difference_is_held() {
    let recreated = cluster(&json!({"partitions": 64}), None);
    let plan = plan_of(&recreated, &healthy());
    assert_eq!(plan.hold.unwrap().reason, HoldReason::LayoutMismatch);
    let plan = plan_of(&cluster(&json!({"partitions": 64, "replicas": 5}), None), &healthy());
    assert_eq!((plan.replicas, plan.node_step), (3, NodeStep::Nothing), "and it is not scaled meanwhile");
}

#[test]
fn the_first_layout_has_the_keyspaces_of_the_spec_and_the_default_one() {
    let spec = json!({"keyspaces": [{"name": "carts", "mode": "siblings"}, {"name": "users"}]});
    let all_empty = look(vec![Some(empty(0)), Some(empty(1)), Some(empty(2))], None);
    let plan = plan_of(&cluster(&spec, remembers(CLUSTER, None)), &all_empty);
    let NodeStep::Init { layout, .. } = plan.node_step else { panic!("{:?}", plan.node_step) };
    let named: Vec<_> = layout.keyspaces.iter().map(|(name, mode)| (name.as_str(), *mode)).collect();
    assert_eq!(
        named,
        [("carts", KeyspaceMode::Siblings), ("default", KeyspaceMode::Lww), ("users", KeyspaceMode::Lww)]
    );
}

#[test]
fn keyspaces_other_than_the_stores_are_held_and_the_store_goes_on() {
    for (spec, expected) in [
        (json!([]), None),
        (json!([{"name": "default"}]), None),
        (
            json!([{"name": "carts"}]),
            Some("carts (siblings), default (lww), and spec.keyspaces says otherwise"),
        ),
        (json!([{"name": "more"}]), Some("the keyspaces carts (siblings), default (lww)")),
    ] {
        let recreated = cluster(&json!({"keyspaces": spec}), None);
        let mut observed = healthy();
        if expected.is_some() {
            let keyspaces = &mut observed.layout.as_mut().unwrap().layout.keyspaces;
            keyspaces.insert("carts".to_owned(), KeyspaceMode::Siblings);
        }
        let plan = plan_of(&recreated, &observed);
        assert_eq!(plan.node_step, NodeStep::Nothing);
        let told =
            plan.hold.as_ref().map(|hold| (hold.reason, hold.message.contains(expected.unwrap_or("?"))));
        assert_eq!(told, expected.map(|_| (HoldReason::LayoutMismatch, true)), "{spec}: {:?}", plan.hold);
        assert!(matches!(plan.identity, Identity::InForce { .. }));
        assert!(writes(&plan).contains(&"StatefulSet demo".to_owned()), "the pods are still looked after");
    }
}

#[test]
fn a_keyspace_that_the_spec_adds_is_added_at_once() {
    let (before, observed) = at_rest(&json!({}));
    let after = changed(&before, &json!({"keyspaces": [{"name": "carts", "mode": "siblings"}]}));
    let plan = plan_of(&after, &observed);
    let NodeStep::Propose(proposal) = plan.node_step else { panic!("{:?}", plan.node_step) };
    assert_eq!((proposal.ordinal, proposal.expected.0, proposal.layout.epoch.0), (0, 1, 2));
    assert_eq!(proposal.layout.keyspaces.get("carts"), Some(&KeyspaceMode::Siblings));
    assert_eq!((plan.hold, plan.progress), (None, None));
}

#[test]
fn somebody_elses_object_is_never_taken() {
    let mut observed = Observed::default();
    observed.children.client_service = Some(Service::default());
    observed.children.client_service.as_mut().unwrap().metadata.name = Some("demo".into());
    let plan = plan_of(&cluster(&json!({}), None), &observed);
    let hold = plan.hold.clone().unwrap();
    assert_eq!(hold.reason, HoldReason::NameConflict);
    assert!(hold.message.starts_with("Service demo exists and does not belong"), "{}", hold.message);
    assert_eq!((writes(&plan), plan.node_step), (Vec::new(), NodeStep::Nothing));
}

#[test]
fn a_paused_cluster_is_watched_only() {
    let (before, mut observed) = at_rest(&json!({}));
    observed.children.client_service = None;
    let paused = changed(&before, &json!({"paused": true}));
    let plan = plan_of(&paused, &observed);
    assert_eq!((writes(&plan), plan.kept_back), (Vec::new(), 1));

    let new = cluster(&json!({"paused": true}), None);
    let plan = plan_of(&new, &look(vec![Some(empty(0)), Some(empty(1)), Some(empty(2))], None));
    assert_eq!((writes(&plan), plan.node_step), (Vec::new(), NodeStep::Nothing));
}

#[test]
fn another_default_image_waits_for_approval_and_a_change_of_the_spec_does_not() {
    let (before, observed) = at_rest(&json!({}));
    let newer = "keystore.dev/keystore-node:0.2.0";
    let image = |plan: &Plan| {
        plan.writes.iter().find_map(|write| match write {
            Write::Apply { object, .. } => object
                .pointer("/spec/template/spec/containers/0/image")
                .and_then(Value::as_str)
                .map(str::to_owned),
            Write::DeleteConfigMap { .. } | Write::DeletePod { .. } => None,
        })
    };
    let held = plan_with_image(&before, &observed, newer);
    let hash = held.pending_update.clone().unwrap();
    assert!(image(&held).is_none_or(|image| image == IMAGE), "{:?}", image(&held));

    let mut approved = before.clone();
    approved.metadata.annotations = Some([(APPROVE_ANNOTATION.to_owned(), hash)].into());
    let plan = plan_with_image(&approved, &observed, newer);
    assert_eq!((plan.pending_update.as_deref(), image(&plan).as_deref()), (None, Some(newer)));

    let asked = changed(&before, &json!({"config": {"log": {"level": "debug"}}}));
    let plan = plan_with_image(&asked, &observed, newer);
    assert_eq!((plan.pending_update.as_deref(), image(&plan).as_deref()), (None, Some(newer)));
}

#[test]
fn a_cluster_that_never_served_gets_a_better_image_at_once() {
    let resource = cluster(&json!({}), remembers(CLUSTER, None));
    let mut observed = look(vec![None, None, None], None);
    let plan = plan_of(&resource, &observed);
    settle(&mut observed, &plan);
    assert_eq!(
        plan_with_image(&resource, &observed, "keystore.dev/keystore-node:0.2.0").pending_update,
        None
    );
}

/// Makes the pods, by ordinal, those of these revisions of the StatefulSet.
fn of_revisions(observed: &mut Observed, revisions: &[&str]) {
    for (ordinal, revision) in (0..).zip(revisions) {
        let pod = observed.pods.get_mut(&ordinal).unwrap();
        pod.metadata.uid = Some(format!("uid-of-pod-{ordinal}"));
        pod.metadata.labels = Some([("controller-revision-hash".into(), (*revision).into())].into());
        pod.metadata.owner_references = serde_json::from_value(json!([{
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "demo", "uid": "uid-of-StatefulSet-demo",
            "controller": true,
        }]))
        .unwrap();
    }
}

#[test]
fn a_correction_reaches_the_silent_pods_that_a_store_is_to_grow_by() {
    let resource = cluster(&json!({"replicas": 7}), remembers(CLUSTER, Some(1)));
    let said = vec![Some(serving(0)), None, Some(serving(2)), None, None, Some(empty(5)), None];
    let mut observed = look(said, decided());
    let plan = plan_of(&resource, &observed);
    settle(&mut observed, &plan);
    of_revisions(&mut observed, &["demo-0", "demo-0", "demo-0", "demo-0", "demo-0", "demo-0", "demo-1"]);
    let plan = plan_of(&resource, &observed);
    let deleted: Vec<_> = writes(&plan).into_iter().filter(|write| write.starts_with("delete")).collect();
    assert_eq!(
        deleted,
        ["delete demo-3", "delete demo-4"],
        "not a member, one that answers, or one of today"
    );
    assert!(plan.is_destructive(&observed));
    let pod = observed.pods.get_mut(&3).unwrap();
    pod.status.get_or_insert_default().conditions =
        serde_json::from_value(json!([{"type": "Ready", "status": "True"}])).unwrap();
    let plan = plan_of(&resource, &observed);
    assert!(!writes(&plan).contains(&"delete demo-3".to_owned()), "one that is ready, and cannot be heard");
}

#[test]
fn a_correction_reaches_the_silent_pods_of_a_store_that_never_was() {
    let resource = cluster(&json!({}), remembers(CLUSTER, None));
    let mut observed = look(vec![None, Some(empty(1)), None, None], None);
    let plan = plan_of(&resource, &observed);
    settle(&mut observed, &plan);
    of_revisions(&mut observed, &["demo-0", "demo-0", "demo-1", "demo-0"]);
    observed.pods.get_mut(&3).unwrap().metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let check = |what: &str, resource: &KeyStoreCluster, edit: fn(&mut Observed), expected: &[&str]| {
        let mut edited = observed.clone();
        edit(&mut edited);
        let plan = plan_of(resource, &edited);
        let deleted: Vec<_> = writes(&plan).into_iter().filter(|write| write.starts_with("delete")).collect();
        assert_eq!(deleted, expected, "{what}");
    };
    check("not the one that answers, nor the one of this template", &resource, |_| {}, &["delete demo-0"]);
    let was = cluster(&json!({}), remembers(CLUSTER, Some(1)));
    check("a store that was in force", &was, |_| {}, &[]);
    let belongs = |seen: &mut Observed| {
        seen.answers.insert(1, Answer::Here(of(CLUSTER, NodeMode::Accepted, 1)));
    };
    check("a node that belongs to a store", &resource, belongs, &[]);
    let serves = |seen: &mut Observed| {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let status = seen.pods.get_mut(&2).unwrap().status.as_mut().unwrap();
        status.conditions = serde_json::from_value(ready).unwrap();
    };
    check("a pod that is ready, and cannot be heard", &resource, serves, &[]);
    let strangers = |seen: &mut Observed| {
        let owners = seen.pods.get_mut(&0).unwrap().metadata.owner_references.as_mut().unwrap();
        owners.first_mut().unwrap().uid = "another".to_owned();
    };
    check("a pod of an earlier StatefulSet, or of somebody else's", &resource, strangers, &[]);
    let unseen = |seen: &mut Observed| {
        seen.children.stateful_set.as_mut().unwrap().metadata.generation = Some(2);
    };
    check("a template that its controller has not seen", &resource, unseen, &[]);
    let paused = cluster(&json!({"paused": true}), remembers(CLUSTER, None));
    check("paused", &paused, |_| {}, &[]);
}

#[test]
fn a_configuration_goes_when_no_revision_names_it() {
    let (before, observed) = at_rest(&json!({}));
    let old = observed.children.config_maps.keys().next().unwrap().clone();
    let after = changed(&before, &json!({"config": {"log": {"level": "debug"}}}));
    let plan = plan_of(&after, &observed);
    assert!(!writes(&plan).iter().any(|write| write.starts_with("delete")), "the live template names it");

    let mut rolled = observed.clone();
    settle(&mut rolled, &plan);
    rolled.children.config_maps_in_use = vec![old.clone()];
    assert_eq!(writes(&plan_of(&after, &rolled)), Vec::<String>::new());
    rolled.children.config_maps_in_use.clear();
    assert_eq!(writes(&plan_of(&after, &rolled)), [format!("delete {old}")]);
    rolled.children.config_maps.insert(old, ConfigMap::default());
    assert_eq!(writes(&plan_of(&after, &rolled)), Vec::<String>::new(), "without a UID nothing is deleted");
}

#[test]
fn a_look_that_saw_one_node_decides_by_the_layout() {
    let seen = look(vec![Some(serving(0)), None, None], decided());
    assert_eq!(plan_of(&cluster(&json!({}), None), &seen).replicas, 3);
}
