//! One reconcile at a time, with something going wrong in the middle of it.

use std::collections::BTreeSet;

use http::StatusCode;
use keystore_operator_core::observed::{
    Actor, ClusterId, Epoch, Incarnation, NodeAnswer, NodeId, NodeMode, Transfer,
};

use super::{
    Action, Arc, CLUSTER, KeyStoreCluster, SERVICE, STATEFUL_SET, Value, World, json, on_error, reconcile,
};

const SERVICE_ACCOUNT: &str = "/api/v1/namespaces/shop/serviceaccounts/demo";
const BUDGET: &str = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/demo";

async fn at_rest() -> World {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.settle().await;
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
    world
}

fn resource(world: &World) -> Arc<KeyStoreCluster> {
    Arc::new(serde_json::from_value(world.api.get(CLUSTER).unwrap()).unwrap())
}

fn owner_of(object: &Value) -> &Value {
    &object["metadata"]["ownerReferences"][0]["uid"]
}

#[tokio::test]
async fn a_child_that_is_exchanged_between_look_and_write_is_not_overwritten() {
    let world = at_rest().await;
    // Something to put back, and by the time it is, the object is another one.
    world.api.edit(SERVICE, |service| service["spec"]["ports"] = json!([]));
    world.api.before_the_next_write_to(SERVICE, |state| {
        state.remove(SERVICE);
        let theirs =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo", "namespace": "shop"}});
        state.store(SERVICE, theirs);
    });
    let error = world.reconcile().await.unwrap_err();
    assert!(error.to_string().contains("applying"), "{error}");
    assert_eq!(owner_of(&world.api.get(SERVICE).unwrap()), &Value::Null);
    assert_eq!(world.is("Stalled"), None, "a conflict is no refusal");
    world.settle().await;
    assert_eq!(world.is("Stalled").as_deref(), Some("NameConflict"));
    assert_eq!(owner_of(&world.api.get(SERVICE).unwrap()), &Value::Null);
}

#[tokio::test]
async fn a_pod_that_is_exchanged_between_look_and_deletion_stays() {
    const POD: &str = "/api/v1/namespaces/shop/pods/demo-3";
    let world = at_rest().await;
    world.api.edit(CLUSTER, |cluster| cluster["spec"]["replicas"] = json!(4));
    world.reconcile().await.unwrap();
    // It never got ready, and what it runs has been corrected.
    let set = world.api.get(STATEFUL_SET).unwrap()["metadata"]["uid"].clone();
    world.api.edit(POD, |pod| {
        pod["metadata"]["labels"]["controller-revision-hash"] = json!("r0");
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "demo", "uid": set, "controller": true}]);
        pod["status"]["conditions"] = json!([]);
    });
    world.api.take_writes();
    world.api.before_the_next_write_to(POD, |state| {
        state.edit(POD, |pod| {
            pod["metadata"]["uid"] = json!("another");
            pod["metadata"]["labels"]["controller-revision-hash"] = json!("r1");
        });
    });
    world.reconcile().await.unwrap();
    assert!(world.api.take_writes().contains(&format!("DELETE {POD}")));
    assert_eq!(world.api.get(POD).unwrap()["metadata"]["uid"], "another");
}

#[tokio::test]
async fn a_child_that_is_edited_between_look_and_write_is_put_back_by_the_next_look() {
    let world = at_rest().await;
    world.api.remove(SERVICE_ACCOUNT);
    let edit = |budget: &mut Value| budget["spec"]["maxUnavailable"] = json!(3);
    world.api.before_the_next_write_to(SERVICE_ACCOUNT, move |state| state.edit(BUDGET, edit));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.get(BUDGET).unwrap()["spec"]["maxUnavailable"], 3, "it was not known to differ");
    world.settle().await;
    assert_eq!(world.api.get(BUDGET).unwrap()["spec"]["maxUnavailable"], 1);
}

#[tokio::test]
async fn children_that_are_deleted_or_edited_are_made_again_and_put_back() {
    let world = at_rest().await;
    let config_map = {
        let template = &world.api.get(STATEFUL_SET).unwrap()["spec"]["template"]["spec"]["volumes"];
        format!("/api/v1/namespaces/shop/configmaps/{}", template[0]["configMap"]["name"].as_str().unwrap())
    };
    let headless = "/api/v1/namespaces/shop/services/demo-nodes";
    for path in [SERVICE_ACCOUNT, &config_map, headless, SERVICE, BUDGET, STATEFUL_SET] {
        let before = world.api.get(path).unwrap();
        let check = |what: &str| {
            let (mut now, mut before) = (world.api.get(path).unwrap(), before.clone());
            for object in [&mut now, &mut before] {
                object["metadata"]
                    .as_object_mut()
                    .unwrap()
                    .retain(|key, _| key != "resourceVersion" && key != "uid");
            }
            assert_eq!(now, before, "{what} {path}");
        };
        world.api.remove(path);
        world.settle().await;
        check("deleted");
        world.api.edit(path, |object| object["metadata"]["labels"] = json!({"team": "a"}));
        world.settle().await;
        check("labels of");
        world.api.edit(path, |object| object["metadata"]["annotations"] = json!({}));
        world.settle().await;
        check("annotations of");
    }
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
    assert_eq!(world.nodes.layouts_seen().len(), 3, "the store never noticed");
}

#[tokio::test]
async fn a_statefulset_scaled_by_hand_is_put_back_and_surplus_pods_wait_for_a_full_look() {
    let world = at_rest().await;
    let replicas = || world.api.get(STATEFUL_SET).unwrap()["spec"]["replicas"].clone();
    let scale = |to: u32| world.api.edit(STATEFUL_SET, |set| set["spec"]["replicas"] = json!(to));
    let surplus = "/api/v1/namespaces/shop/pods/demo-3";

    scale(1);
    let away = [world.nodes.stop("demo-1").unwrap(), world.nodes.stop("demo-2").unwrap()];
    world.reconcile().await.unwrap();
    assert_eq!(replicas(), 3);
    let [one, two] = away;
    world.nodes.resume("demo-1", one);

    scale(4);
    world.nodes.start("demo-3", 4);
    world.settle().await;
    assert_eq!((replicas(), world.api.get(surplus).is_some()), (json!(4), true), "demo-2 is silent");
    world.nodes.resume("demo-2", two);
    world.settle().await;
    assert_eq!((replicas(), world.api.get(surplus)), (json!(3), None));
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
    assert_eq!(world.nodes.layouts_seen().len(), 3, "the surplus pod was given nothing");
}

#[tokio::test]
async fn a_resource_that_is_edited_meanwhile_is_reported_by_the_next_look_only() {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.reconcile().await.unwrap();
    // The next reconcile mints a UUID; somebody else's status comes first.
    let other = "11111111-2222-4333-8444-555555555555";
    world.api.before_the_next_write_to("/demo/status", move |state| {
        state.edit(CLUSTER, |cluster| cluster["status"]["clusterID"] = json!(other));
    });
    let error = world.reconcile().await.unwrap_err();
    assert!(error.to_string().contains("reporting"), "{error}");
    assert_eq!(world.status()["clusterID"], other, "a UUID is never written over another");
    world.settle().await;
    let layouts = world.nodes.layouts_seen();
    assert!(layouts.iter().all(|layout| layout.cluster.to_string() == other), "{layouts:?}");
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
}

#[tokio::test]
async fn a_resource_that_is_deleted_meanwhile_is_forgotten_without_a_failure() {
    for path in [SERVICE_ACCOUNT, STATEFUL_SET, "/demo/status"] {
        let world = World::new(&json!({}));
        world.api.before_the_next_write_to(path, |state| drop(state.remove(CLUSTER)));
        let cluster = resource(&world);
        let action = reconcile(cluster, world.context.clone()).await.unwrap();
        assert_eq!(action, Action::await_change(), "{path}");
        assert!(!world.context.metrics.encode().unwrap().contains("namespace=\"shop\""), "{path}");
    }
}

#[tokio::test]
async fn a_resource_that_is_deleted_and_made_anew_meanwhile_gets_nothing_of_the_old_ones_status() {
    let world = at_rest().await;
    world.api.edit(CLUSTER, |cluster| cluster["status"]["readyReplicas"] = json!(0));
    world.api.before_the_next_write_to("/demo/status", |state| {
        state.remove(CLUSTER);
        let metadata = json!({"name": "demo", "namespace": "shop"});
        let anew = json!({
            "apiVersion": "keystore.dev/v1alpha1", "kind": "KeyStoreCluster", "metadata": metadata, "spec": {},
        });
        state.store(CLUSTER, anew);
    });
    assert!(world.reconcile().await.is_err());
    assert_eq!(world.status(), Value::Null);
}

#[tokio::test]
async fn a_namespace_that_goes_away_is_no_failure_whatever_is_written() {
    let refusal = json!({
        "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "going away",
        "details": {"causes": [{"reason": "NamespaceTerminating", "message": "shop is being terminated"}]},
    });
    for part in ["/serviceaccounts/", "/statefulsets/", "/demo/status", "/namespaces/shop/"] {
        let world = World::new(&json!({}));
        world.api.refuse_writes_to(part, refusal.clone());
        let error = world.reconcile().await.unwrap_err();
        assert_eq!(on_error(&resource(&world), &error, &world.context), Action::await_change(), "{part}");
        assert!(!world.context.metrics.encode().unwrap().contains("errors_total{"), "{part}");
    }
    // Events alone are no reason to do anything again.
    let world = World::new(&json!({}));
    world.api.refuse_writes_to("/events", refusal);
    world.reconcile().await.unwrap();
}

#[tokio::test]
async fn a_server_in_trouble_changes_nothing_that_was_seen() {
    let world = at_rest().await;
    let before = world.status();
    for code in [500, 502, 507] {
        world.api.fail_with(Some(StatusCode::from_u16(code).unwrap()));
        assert!(world.reconcile().await.is_err());
    }
    world.api.fail_with(None);
    assert_eq!(world.api.take_writes(), Vec::<String>::new(), "what cannot be read is not acted upon");
    world.reconcile().await.unwrap();
    assert_eq!((world.status(), world.api.take_writes()), (before, Vec::new()));
}

#[tokio::test]
async fn writes_that_fail_half_way_are_finished_later() {
    let world = World::new(&json!({}));
    world.start_nodes();
    let trouble = json!({"kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "trouble"});
    world.api.refuse_writes_to("/statefulsets/", trouble);
    assert!(world.reconcile().await.is_err());
    assert!(world.api.get(SERVICE).is_some() && world.api.get(STATEFUL_SET).is_none());
    assert_eq!(world.is("Stalled"), None, "trouble is no refusal");
    world.api.refuse_writes_to("nowhere", json!({"code": 500}));
    world.settle().await;
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
}

#[tokio::test]
async fn once_the_leadership_is_lost_nothing_more_is_written_nor_sent_to_a_node() {
    // To the API server: in the middle of the children, and before the status.
    for (part, rest) in [(BUDGET, STATEFUL_SET), (STATEFUL_SET, "/demo/status")] {
        let world = World::new(&json!({}));
        let leadership = world.context.leadership.clone();
        world.api.before_the_next_write_to(part, move |_| leadership.end());
        let result = world.reconcile().await;
        assert!(result.is_err());
        let writes = world.api.take_writes();
        assert!(writes.last().unwrap().ends_with(part), "{writes:?}");
        assert!(!writes.iter().any(|write| write.ends_with(rest)), "{writes:?}");
        assert_eq!(world.status(), Value::Null);
    }
    // To the nodes: the UUID is in the status, and the first layout is not sent.
    let world = World::new(&json!({}));
    world.start_nodes();
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    assert!(world.status()["clusterID"].is_string());
    world.context.leadership.end();
    assert!(world.reconcile().await.is_err());
    assert_eq!(world.nodes.layouts_seen(), Vec::new());
}

#[tokio::test]
async fn nodes_that_contradict_themselves_are_not_believed() {
    let answer = |mode, cluster| NodeAnswer {
        node: NodeId([2; 16]),
        actor: Actor(2),
        version: "0.1.0".to_owned(),
        mode,
        cluster,
        incarnation: Incarnation::default(),
        epoch: Epoch(7),
        partitions_available: u32::MAX,
        connected: BTreeSet::new(),
        transfer: Transfer::default(),
        is_in_doubt: false,
        disk: None,
    };
    // Belongs to a store of which it shows no layout: the others are not initialised beside it.
    for mode in [NodeMode::Uninitialized, NodeMode::Serving, NodeMode::Draining, NodeMode::Accepted] {
        let world = World::new(&json!({}));
        world.start_nodes();
        world.nodes.garble("demo-1", Some(answer(mode, Some(ClusterId([9; 16])))));
        world.settle().await;
        assert_eq!((world.nodes.layouts_seen(), world.is("Ready")), (Vec::new(), None), "{mode:?}");
        assert!(world.status()["clusterID"].is_null(), "{mode:?}");
        world.nodes.garble("demo-1", None);
        world.settle().await;
        assert_eq!(world.is("Ready").as_deref(), Some("Converged"), "{mode:?}");
    }
    // Serves, and for no store.
    let world = at_rest().await;
    world.nodes.garble("demo-1", Some(answer(NodeMode::Serving, None)));
    world.settle().await;
    assert_eq!(world.nodes.layouts_seen().len(), 3);
}
