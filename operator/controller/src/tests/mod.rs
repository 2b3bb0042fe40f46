//! Whole reconciles against an API server and nodes in memory.

mod controlled;
mod edges;
mod fake_api;
mod fake_nodes;
mod fake_path;
mod leading;
mod real_nodes;
mod scaling;

use std::sync::Arc;
use std::time::Duration;

use keystore_crds::KeyStoreCluster;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::context::{Context, Failures};
use crate::leadership::Leadership;
use crate::metrics::Metrics;
use crate::reconcile::{ReconcileError, on_error, reconcile};
use fake_api::FakeApi;
use fake_nodes::FakeNodes;

const CLUSTER: &str = "/apis/keystore.dev/v1alpha1/namespaces/shop/keystoreclusters/demo";
const STATEFUL_SET: &str = "/apis/apps/v1/namespaces/shop/statefulsets/demo";
const SERVICE: &str = "/api/v1/namespaces/shop/services/demo";

/// More than any test takes, of a clock that is paused.
const A_LONG_TIME: Duration = Duration::from_secs(1_000_000);

struct World {
    api: FakeApi,
    nodes: Arc<FakeNodes>,
    context: Arc<Context>,
}

impl World {
    /// A resource, its namespace's machines in three zones, and no pod yet.
    fn new(spec: &Value) -> Self {
        let api = FakeApi::default();
        let nodes = Arc::new(FakeNodes::default());
        let leadership = Leadership::default();
        leadership.extend(Instant::now() + A_LONG_TIME);
        let client = api.client(&leadership);
        let context = Arc::new(Context {
            recorder: Recorder::new(client.clone(), "keystore-operator".into()),
            client,
            leadership,
            nodes: nodes.clone(),
            metrics: Arc::new(Metrics::new()),
            node_image: "keystore.dev/keystore-node:0.1.0".to_owned(),
            failures: Failures::default(),
        });
        let world = Self { api, nodes, context };
        (0..3).for_each(|machine| world.add_machine(machine));
        world.create(spec);
        world
    }

    /// In a zone of its own.
    fn add_machine(&self, machine: u32) {
        let labels = json!({"topology.kubernetes.io/zone": format!("zone-{machine}")});
        self.api.put(
            &format!("/api/v1/nodes/node-{machine}"),
            json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": format!("node-{machine}"), "labels": labels},
            }),
        );
    }

    fn create(&self, spec: &Value) {
        self.api.put(
            CLUSTER,
            json!({
                "apiVersion": "keystore.dev/v1alpha1", "kind": "KeyStoreCluster",
                "metadata": {"name": "demo", "namespace": "shop"}, "spec": spec,
            }),
        );
    }

    fn start_nodes(&self) {
        for (uuid, pod) in (1..).zip(["demo-0", "demo-1", "demo-2"]) {
            self.nodes.start(pod, uuid);
        }
    }

    async fn reconcile(&self) -> Result<Action, ReconcileError> {
        let cluster: KeyStoreCluster = serde_json::from_value(self.api.get(CLUSTER).unwrap()).unwrap();
        reconcile(Arc::new(cluster), self.context.clone()).await
    }

    /// As many reconciles as it takes until three in a row write nothing.
    async fn settle(&self) {
        let mut quiet = 0;
        for _ in 0..20 {
            // What fails is tried again, as the controller would.
            let result = self.reconcile().await;
            quiet = if self.api.take_writes().is_empty() && result.is_ok() { quiet + 1 } else { 0 };
            if quiet == 3 {
                return;
            }
        }
        panic!("the operator still writes after twenty reconciles: {:#}", self.api.get(CLUSTER).unwrap());
    }

    fn status(&self) -> Value {
        self.api.get(CLUSTER).unwrap()["status"].clone()
    }

    /// Reconciles until that is so.
    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..80 {
            if is_so(self) {
                return;
            }
            let _failures_are_tried_again = self.reconcile().await;
        }
        panic!("not {what} after eighty reconciles: {:#}", self.status());
    }

    /// `Reason` of a condition that is true.
    fn is(&self, type_: &str) -> Option<String> {
        let conditions = self.status()["conditions"].clone();
        let found = conditions.as_array()?.iter().find(|condition| condition["type"] == type_)?.clone();
        (found["status"] == "True").then(|| found["reason"].as_str().unwrap().to_owned())
    }
}

#[tokio::test]
async fn a_cluster_is_created_initialised_once_and_then_left_alone() {
    let world = World::new(&json!({}));
    world.settle().await;
    assert_eq!(world.is("Progressing").as_deref(), Some("Creating"));
    assert!(world.status()["clusterID"].is_null(), "no node has answered yet");

    world.start_nodes();
    world.settle().await;
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
    assert_eq!(world.nodes.layouts_seen().len(), 3);
    let status = world.status();
    assert_eq!(status["clusterID"], world.nodes.layouts_seen()[0].cluster.to_string());
    assert_eq!((&status["epoch"], &status["nodes"][2]["zone"]), (&json!(1), &json!("zone-2")));

    for _ in 0..5 {
        world.reconcile().await.unwrap();
        assert_eq!(world.api.take_writes(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_uuid_is_in_the_status_before_any_node_learns_of_it() {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let minted = world.status()["clusterID"].clone();
    assert!(minted.is_string());
    assert_eq!(world.nodes.layouts_seen(), Vec::new());
    world.reconcile().await.unwrap();
    assert_eq!(minted, world.nodes.layouts_seen()[0].cluster.to_string());
}

#[tokio::test]
async fn an_init_that_was_cut_short_goes_on_with_the_same_layout() {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.nodes.fail_next_init_at("demo-1");
    world.settle().await;
    let layouts = world.nodes.layouts_seen();
    assert_eq!(layouts.len(), 3);
    assert!(layouts.iter().all(|layout| *layout == layouts[0]));
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
}

#[tokio::test]
async fn a_new_resource_adopts_what_old_volumes_hold_even_while_one_pod_is_slow() {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.settle().await;
    let before = world.status()["clusterID"].clone();

    world.create(&json!({}));
    let slow = world.nodes.stop("demo-2").unwrap();
    world.settle().await;
    assert!(world.status()["operation"]["message"].as_str().unwrap().contains("of an earlier resource"));
    assert_eq!(world.is("Stalled"), None);

    world.api.collect_children();
    world.settle().await;
    assert_eq!(world.status()["clusterID"], before);
    assert_eq!(world.is("Degraded").as_deref(), Some("NodeDown"));

    world.nodes.resume("demo-2", slow);
    world.settle().await;
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
    assert_eq!(world.nodes.layouts_seen().len(), 3, "nothing was initialised anew");
}

#[tokio::test]
async fn nodes_that_all_come_back_empty_are_reported_and_not_initialised() {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.settle().await;
    for (uuid, pod) in (7..).zip(["demo-0", "demo-1", "demo-2"]) {
        world.nodes.start(pod, uuid);
    }
    world.settle().await;
    assert_eq!(world.is("Degraded").as_deref(), Some("NodeReplaced"));
    assert_eq!((world.nodes.layouts_seen().len(), world.nodes.layouts_decided().len()), (3, 0));
}

#[tokio::test]
async fn somebody_elses_service_is_left_alone() {
    let world = World::new(&json!({}));
    let theirs =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo", "namespace": "shop"}});
    world.api.put(SERVICE, theirs);
    let before = world.api.get(SERVICE);
    world.settle().await;
    assert_eq!(world.is("Stalled").as_deref(), Some("NameConflict"));
    assert_eq!((world.api.get(SERVICE), world.api.get(STATEFUL_SET)), (before, None));
}

#[tokio::test]
async fn somebody_elses_object_is_left_alone_also_if_it_appears_between_look_and_write() {
    let path = "/api/v1/namespaces/shop/serviceaccounts/demo";
    let world = World::new(&json!({}));
    let theirs = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "demo", "namespace": "shop", "uid": "theirs"},
    });
    world.api.before_the_next_write_to(path, move |state| drop(state.store(path, theirs)));
    assert!(world.reconcile().await.is_err());
    let theirs = world.api.get(path).unwrap();
    assert_eq!(
        (&theirs["metadata"]["uid"], &theirs["metadata"]["ownerReferences"]),
        (&json!("theirs"), &Value::Null)
    );
    assert_eq!(world.is("Stalled"), None, "the next look says whose it is");

    world.settle().await;
    assert_eq!(world.is("Stalled").as_deref(), Some("NameConflict"));
    assert_eq!((world.api.get(path), world.api.get(STATEFUL_SET)), (Some(theirs), None));
}

#[tokio::test]
async fn while_paused_only_the_status_is_written() {
    let world = World::new(&json!({"paused": true}));
    world.reconcile().await.unwrap();
    let writes = world.api.take_writes();
    assert!(writes.iter().all(|write| write.ends_with("/status") || write.contains("/events")), "{writes:?}");
    assert_eq!(world.api.get(STATEFUL_SET), None);
}

#[tokio::test]
async fn a_deleted_resource_is_not_worked_on() {
    let world = World::new(&json!({}));
    let cluster: KeyStoreCluster = serde_json::from_value(world.api.get(CLUSTER).unwrap()).unwrap();
    world.api.remove(CLUSTER);
    let action = reconcile(Arc::new(cluster), world.context.clone()).await.unwrap();
    assert_eq!(action, Action::await_change());
    assert_eq!(world.api.take_writes(), Vec::<String>::new());
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_to_a_person() {
    let world = World::new(&json!({}));
    let refusal = json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid", "message": "no good"});
    world.api.refuse_writes_to("/statefulsets/", refusal);
    assert!(world.reconcile().await.is_err());
    assert_eq!(world.is("Stalled").as_deref(), Some("Rejected"));
}

#[tokio::test]
async fn a_node_that_refuses_its_first_layout_is_told_to_a_person_until_it_takes_it() {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.nodes.refuse_init_at(Some("demo-1"));
    let mut refused = None;
    for _ in 0..10 {
        refused = refused.or(world.reconcile().await.err());
    }
    assert!(refused.is_some());
    assert_eq!(world.is("Stalled").as_deref(), Some("Rejected"));
    assert!(world.status().to_string().contains("demo-1 refuses its first layout: its company"));
    world.nodes.refuse_init_at(None);
    world.settle().await;
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
}

#[tokio::test]
async fn a_namespace_that_goes_away_is_no_failure() {
    let world = World::new(&json!({}));
    let refusal = json!({
        "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "going away",
        "details": {"causes": [{"reason": "NamespaceTerminating", "message": "shop is being terminated"}]},
    });
    world.api.refuse_writes_to("/serviceaccounts/", refusal);
    let error = world.reconcile().await.unwrap_err();
    let cluster: KeyStoreCluster = serde_json::from_value(world.api.get(CLUSTER).unwrap()).unwrap();
    assert_eq!(on_error(&cluster, &error, &world.context), Action::await_change());
    assert_eq!(world.is("Stalled"), None);
}
