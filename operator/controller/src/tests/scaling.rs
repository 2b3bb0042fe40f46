//! The number of nodes changes, and nodes lose their volumes: whole operations, reconcile by reconcile.

use std::collections::BTreeSet;

use keystore_operator_core::observed::{Layout, NodeId};

use super::{CLUSTER, STATEFUL_SET, Value, World, json};
use crate::nodes::{NodeAddress, NodeClient};

/// Three nodes that serve, and two more that answer as soon as they have pods.
async fn at_rest() -> World {
    let world = World::new(&json!({}));
    world.start_nodes();
    world.nodes.start("demo-3", 4);
    world.nodes.start("demo-4", 5);
    world.settle().await;
    assert_eq!(world.is("Ready").as_deref(), Some("Converged"));
    world
}

fn scale(world: &World, replicas: u32) {
    world.api.edit(CLUSTER, |cluster| cluster["spec"]["replicas"] = json!(replicas));
}

fn pods(world: &World) -> (u64, Vec<bool>) {
    let replicas = world.api.get(STATEFUL_SET).unwrap()["spec"]["replicas"].as_u64().unwrap();
    let exists =
        |ordinal: u32| world.api.get(&format!("/api/v1/namespaces/shop/pods/demo-{ordinal}")).is_some();
    (replicas, (0..5).map(exists).collect())
}

fn holders(layout: &Layout) -> BTreeSet<NodeId> {
    layout.ring().iter().flat_map(|(_, replicas)| replicas.iter().map(|replica| replica.node)).collect()
}

fn nodes(ids: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
    ids.into_iter().map(|id| NodeId([id; 16])).collect()
}

fn operation(world: &World) -> Value {
    world.status()["operation"].clone()
}

fn is_converged(world: &World) -> bool {
    world.is("Ready").as_deref() == Some("Converged")
}

#[tokio::test]
async fn more_nodes_get_pods_then_members_then_data_and_fewer_give_them_up_in_the_other_order() {
    let world = at_rest().await;
    world.add_machine(4);
    scale(&world, 5);
    world.until("scaling up", |world| world.is("Progressing").as_deref() == Some("ScalingUp")).await;
    assert_eq!(pods(&world).0, 5);
    world.until("moving", |world| world.status()["layoutPhase"] == "joint").await;
    let up = operation(&world);
    assert_eq!((&up["kind"], &up["from"], &up["to"]), (&json!("ScaleUp"), &json!(3), &json!(5)));
    let joining: Vec<_> =
        world.status()["nodes"].as_array().unwrap().iter().map(|n| n["state"].clone()).collect();
    assert_eq!(joining, ["serving", "serving", "serving", "joining", "joining"]);
    world.until("at rest with five", is_converged).await;
    let layouts = world.nodes.layouts_decided();
    let steps: Vec<_> =
        layouts.iter().map(|l| (l.epoch.0, l.members.len(), l.is_joint(), holders(l).len())).collect();
    assert_eq!(steps, [(2, 5, false, 3), (3, 5, true, 5), (4, 5, false, 5)]);
    let zones: Vec<_> = layouts[0].members.iter().skip(2).map(|member| member.zone.as_str()).collect();
    assert_eq!(zones, ["zone-2", "", "zone-4"], "nothing is known of the fourth machine");

    scale(&world, 3);
    world.until("moving", |world| world.status()["layoutPhase"] == "joint").await;
    assert_eq!(pods(&world), (5, vec![true; 5]), "data first");
    let down = operation(&world);
    assert_eq!((&down["kind"], &down["from"], &down["to"]), (&json!("ScaleDown"), &json!(5), &json!(3)));
    world.until("at rest with three", is_converged).await;
    assert_eq!(pods(&world), (3, vec![true, true, true, false, false]));
    let last = world.nodes.layouts_decided().pop().unwrap();
    assert_eq!((holders(&last), last.departed), (nodes(1..=3), nodes(4..=5)));
    assert_eq!(world.nodes.layouts_seen().len(), 3, "nothing was initialised anew");

    // The old disks come back, and join as new nodes.
    scale(&world, 5);
    world.until("scaling up", |world| world.is("Progressing").as_deref() == Some("ScalingUp")).await;
    world.until("at rest with five", is_converged).await;
    let last = world.nodes.layouts_decided().pop().unwrap();
    assert_eq!(holders(&last), nodes([1, 2, 3, 104, 105]));
    world.api.take_writes();
    for _ in 0..5 {
        world.reconcile().await.unwrap();
    }
    assert_eq!(world.api.take_writes(), Vec::<String>::new());
    assert_eq!(world.nodes.layouts_decided().pop(), Some(last));
}

#[tokio::test]
async fn a_change_of_mind_in_the_middle_turns_the_move_back() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("moving", |world| world.status()["layoutPhase"] == "joint").await;
    scale(&world, 3);
    world.reconcile().await.unwrap();
    assert_eq!(operation(&world)["phase"], "TurningBack");
    world.until("at rest with three", is_converged).await;
    assert_eq!(pods(&world), (3, vec![true, true, true, false, false]));
    let phases: Vec<_> =
        world.nodes.layouts_decided().iter().map(|l| (l.is_joint(), holders(l).len())).collect();
    // Joining, moving, turned back, nothing moves there any more, dismissed.
    assert_eq!(phases, [(false, 3), (true, 5), (false, 3), (false, 3), (false, 3)]);
}

#[tokio::test]
async fn a_node_whose_volume_is_gone_is_replaced_by_the_one_that_came_in_its_place() {
    let world = at_rest().await;
    world.nodes.start("demo-1", 9);
    world.until("replacing", |world| world.is("Progressing").as_deref() == Some("Replacing")).await;
    assert_eq!(world.is("Degraded").as_deref(), Some("NodeReplaced"));
    world.until("at rest", is_converged).await;
    let last = world.nodes.layouts_decided().pop().unwrap();
    assert_eq!((holders(&last), last.departed), (nodes([1, 9, 3]), nodes([2])));
    assert_eq!(world.status()["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(world.nodes.layouts_seen().len(), 3);
}

#[tokio::test]
async fn nobody_is_given_up_for_what_is_not_so_any_more_when_it_is_looked_at_once_more() {
    let world = at_rest().await;
    world.nodes.stray_at("demo-1", 9);
    world.reconcile().await.unwrap();
    assert_eq!(world.nodes.layouts_decided(), Vec::new());
    assert!(is_converged(&world));
}

#[tokio::test]
async fn nothing_shrinks_that_falls_silent_before_it_is_looked_at_once_more() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("at rest with five", |world| is_converged(world) && pods(world).0 == 5).await;
    scale(&world, 3);
    let is_closed = |layout: &Layout| layout.members.iter().any(|member| member.weight == 0);
    world.until("closed", |world| world.nodes.layouts_decided().last().is_some_and(is_closed)).await;
    let mut seen_twice = 0;
    for _ in 0..6 {
        world.nodes.silence_after_one_look(&["demo-1"]);
        world.reconcile().await.unwrap();
        seen_twice += u32::from(world.status()["nodes"][1]["state"] != "serving");
        assert_eq!(pods(&world), (5, vec![true; 5]));
    }
    assert!(seen_twice > 0, "pods were never about to go");
    world.nodes.silence_after_one_look(&[]);
    world.until("at rest with three", is_converged).await;
    assert_eq!(pods(&world).0, 3);
}

#[tokio::test]
async fn no_move_turns_back_to_nodes_that_fall_silent_before_they_are_looked_at_once_more() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("moving", |world| world.status()["layoutPhase"] == "joint").await;
    scale(&world, 3);
    world.nodes.silence_after_one_look(&["demo-1", "demo-2"]);
    world.reconcile().await.unwrap();
    assert!(world.nodes.layouts_decided().last().unwrap().is_joint());
    assert_eq!(operation(&world)["phase"], "Moving");
    world.nodes.silence_after_one_look(&[]);
    world.until("at rest with three", is_converged).await;
    let phases: Vec<_> = world.nodes.layouts_decided().iter().map(Layout::is_joint).collect();
    assert_eq!(phases, [false, true, false, false, false], "it turned back in the end");
}

const LONG_AGO: &str = "2001-01-01T00:00:00Z";

fn set_ready(world: &World, pod: &str, is_ready: bool) {
    let status = if is_ready { "True" } else { "False" };
    world.api.edit(&format!("/api/v1/namespaces/shop/pods/{pod}"), |pod| {
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": status, "lastTransitionTime": LONG_AGO}]);
    });
}

#[tokio::test]
async fn a_node_that_stays_away_is_given_up_and_replaced_in_another_pod_until_its_own_is_back() {
    let world = at_rest().await;
    world.api.edit(CLUSTER, |cluster| cluster["spec"]["replaceAfterSeconds"] = json!(600));
    let old = world.nodes.stop("demo-1").unwrap();
    set_ready(&world, "demo-1", false);
    world.settle().await;
    assert_eq!(world.is("Degraded").as_deref(), Some("NodeDown"));
    assert!(world.status()["nodes"][1]["downSince"].is_string());
    assert_eq!(world.nodes.layouts_decided(), Vec::new(), "not yet");

    world.api.edit(CLUSTER, |cluster| cluster["status"]["nodes"][1]["downSince"] = json!(LONG_AGO));
    world.until("replacing", |world| world.is("Progressing").as_deref() == Some("Replacing")).await;
    world.until("given up", |world| world.is("Degraded").as_deref() == Some("NodeReplaced")).await;
    world.until("at rest without it", is_converged).await;
    let last = world.nodes.layouts_decided().pop().unwrap();
    assert_eq!((holders(&last), pods(&world).0), (nodes([1, 3, 4]), 4));
    assert_eq!(world.status()["nodes"][1]["state"], "lost");

    world.nodes.resume("demo-1", old);
    set_ready(&world, "demo-1", true);
    world.until("data comes back", |world| world.status()["layoutPhase"] == "joint").await;
    world.until("at rest with it", is_converged).await;
    let last = world.nodes.layouts_decided().pop().unwrap();
    assert_eq!((holders(&last), pods(&world).0), (nodes([1, 102, 3]), 3));
    assert_eq!(last.departed, nodes([2, 4]));
}

#[tokio::test]
async fn a_proposal_that_is_refused_is_told_and_made_again() {
    let world = at_rest().await;
    world.nodes.refuse_proposals(Some("02020202-0202-0202-0202-020202020202 is not so far"));
    scale(&world, 5);
    world
        .until("refused", |world| operation(world)["message"].as_str().is_some_and(|m| m.contains("not yet")))
        .await;
    let message = operation(&world)["message"].clone();
    assert!(message.as_str().unwrap().ends_with("; not yet: demo-1 is not so far"), "{message}");
    assert_eq!(world.is("Stalled"), None);
    world.nodes.refuse_proposals(None);
    world.until("at rest with five", is_converged).await;
}

#[tokio::test]
async fn what_the_api_server_refuses_does_not_keep_a_move_from_its_end_nor_a_loss_from_being_said() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("moving", |world| world.status()["layoutPhase"] == "joint").await;
    let refusal = json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid", "message": "no good"});
    world.api.refuse_writes_to("/statefulsets/", refusal);
    world.api.edit(CLUSTER, |cluster| cluster["spec"]["resources"] = json!({"limits": {"memory": "1Gi"}}));
    world.nodes.start("demo-1", 9);
    world
        .until("the loss is said", |world| {
            world.nodes.layouts_decided().last().is_some_and(|l| l.is_lost(NodeId([2; 16])))
        })
        .await;
    world.until("the move has ended", |world| world.status()["layoutPhase"] == "stable").await;
    assert!(world.reconcile().await.is_err());
    assert_eq!(world.is("Stalled").as_deref(), Some("Rejected"));
    world.api.refuse_writes_to("nowhere", json!({"code": 500}));
    world.until("at rest with five", is_converged).await;
}

#[tokio::test]
async fn nobody_joins_in_pods_that_are_taken_away_and_cannot_be_called_back() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("pods are there", |world| pods(world).0 == 5).await;
    let path = |ordinal: u32| format!("/api/v1/namespaces/shop/pods/demo-{ordinal}");
    let ending = [3, 4].map(|ordinal| {
        let mut pod = world.api.get(&path(ordinal)).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!(LONG_AGO);
        (ordinal, pod)
    });
    world.api.edit(STATEFUL_SET, |set| set["spec"]["replicas"] = json!(3));
    ending.into_iter().for_each(|(ordinal, pod)| world.api.put(&path(ordinal), pod));
    let refusal = json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid", "message": "no good"});
    world.api.refuse_writes_to("/statefulsets/", refusal);
    for _ in 0..3 {
        assert!(world.reconcile().await.is_err());
    }
    assert_eq!(world.nodes.layouts_decided(), Vec::new());
}

#[tokio::test]
async fn a_node_that_is_behind_does_not_hide_what_is_in_force() {
    let world = at_rest().await;
    let address = NodeAddress { pod: "demo-0".to_owned(), ip: String::new() };
    let of_first = world.nodes.get_status(&address).await.unwrap();
    world.nodes.garble("demo-0", Some(of_first));
    scale(&world, 5);
    world.until("joined", |world| world.status()["epoch"] == 2).await;
    world.reconcile().await.unwrap();
    let message = operation(&world)["message"].clone();
    assert_eq!(message, "waiting for demo-0 to take up epoch 2 and serve");
    world.nodes.garble("demo-0", None);
    world.until("at rest with five", is_converged).await;
}

#[tokio::test]
async fn a_spec_that_is_refused_moves_nothing_and_takes_no_pod() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("at rest with five", |world| is_converged(world) && pods(world).0 == 5).await;
    let before = world.nodes.layouts_decided();
    world.api.edit(CLUSTER, |cluster| {
        cluster["spec"]["replicas"] = json!(3);
        cluster["spec"]["config"] = json!({"node": {"name": "x"}});
    });
    world.settle().await;
    assert_eq!(world.is("Stalled").as_deref(), Some("InvalidSpec"));
    assert_eq!((world.nodes.layouts_decided(), pods(&world)), (before, (5, vec![true; 5])));
}

#[tokio::test]
async fn a_spec_that_is_refused_stops_no_move_and_hides_no_trouble() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("moving", |world| world.status()["layoutPhase"] == "joint").await;
    world.api.edit(CLUSTER, |cluster| cluster["spec"]["config"] = json!({"node": {"name": "x"}}));
    world.until("the move has ended", |world| world.status()["layoutPhase"] == "stable").await;
    assert_eq!(world.is("Stalled").as_deref(), Some("InvalidSpec"));
    assert_eq!((pods(&world).0, world.is("Available").as_deref()), (5, Some("QuorumAvailable")));
    for pod in ["demo-1", "demo-2", "demo-3"] {
        world.nodes.stop(pod);
        set_ready(&world, pod, false);
    }
    world.reconcile().await.unwrap();
    assert_eq!((world.is("Available"), world.is("Degraded").as_deref()), (None, Some("NodeDown")));
    assert_eq!(world.status()["nodes"][1]["state"], "down");
    world.settle().await;
}

#[tokio::test]
async fn a_number_below_the_replication_factor_is_held_and_raising_it_needs_nothing_else() {
    let world = at_rest().await;
    scale(&world, 2);
    world.settle().await;
    assert_eq!(world.is("Stalled").as_deref(), Some("BelowReplicationFactor"));
    assert_eq!((pods(&world).0, world.nodes.layouts_decided().len()), (3, 0));
    scale(&world, 3);
    world.settle().await;
    assert!(is_converged(&world));
}

#[tokio::test]
async fn once_the_leadership_is_lost_nothing_is_proposed() {
    let world = at_rest().await;
    scale(&world, 5);
    world.until("pods are there", |world| pods(world).0 == 5).await;
    let leadership = world.context.leadership.clone();
    leadership.end();
    for _ in 0..5 {
        assert!(world.reconcile().await.is_err());
    }
    assert_eq!(world.nodes.layouts_decided(), Vec::new());
}
