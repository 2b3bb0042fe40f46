//! Nodes join and leave a cluster of real processes under load: the data moves first, no request fails for it, and nothing
//! that was acknowledged is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use keystore_core::history::Difference;
use keystore_core::id::Incarnation;
use keystore_core::layout::{Layout, Member};
use keystore_core::partition::RecordKey;
use keystore_core::recovery::Losses;
use keystore_core::succession::Change;
use keystore_history::{Action, History, ReadOutcome, WriteOutcome};
use keystore_proto::history::history_from_wire;
use keystore_proto::v1;
use rustix::process::Signal;
use support::load::{Load, judge, judge_everywhere};
use support::{Cluster, NodeProcess, wait_until};

async fn layout_of(node: &NodeProcess) -> Layout {
    let response = node.admin().get_layout(v1::GetLayoutRequest {}).await.unwrap().into_inner();
    Layout::try_from(response.layout.unwrap()).unwrap()
}

async fn members(nodes: &[NodeProcess]) -> Vec<Member> {
    let mut members = Vec::new();
    for node in nodes {
        members.push(node.member().await);
    }
    members
}

/// Has a change decided through a node; tries again while a gate is not open yet.
async fn change(node: &NodeProcess, change: &Change) -> Layout {
    wait_until("a layout is decided", || async {
        let now = layout_of(node).await;
        let next = now.next(change).unwrap();
        let request = v1::ProposeLayoutRequest { expected_epoch: now.epoch.0, layout: Some((&next).into()) };
        let decided = node.admin().propose_layout(request).await.ok()?.into_inner().layout.unwrap();
        (Layout::try_from(decided).unwrap() == next).then_some(next)
    })
    .await
}

/// Until these nodes serve under this layout's epoch, and each is linked to all others.
async fn wait_until_taken_up(nodes: &[NodeProcess], layout: &Layout) {
    for node in nodes.iter().filter(|node| node.is_running()) {
        wait_until("a layout is taken up", || async {
            let status = node.status().await.ok()?;
            let connected = status.peers.iter().filter(|peer| peer.connected).count();
            let is_up = status.epoch >= layout.epoch.0 && status.state() == v1::NodeState::Serving;
            (is_up && connected + 1 >= nodes.iter().filter(|node| node.is_running()).count()).then_some(())
        })
        .await;
    }
}

async fn move_to(cluster: &Cluster, nodes: &[NodeProcess]) -> Layout {
    let members = members(nodes).await;
    let replication_factor = members.len().min(3);
    change(&cluster.nodes[0], &Change::Move { members, replication_factor }).await
}

async fn finish(cluster: &Cluster) -> Layout {
    let layout = change(&cluster.nodes[0], &Change::Finish).await;
    wait_until_taken_up(&cluster.nodes, &layout).await;
    layout
}

/// Nodes that belong to no cluster are started beside it and become members that hold nothing.
async fn admit(cluster: &mut Cluster, count: usize) {
    let first = cluster.nodes.len();
    for index in first..first + count {
        cluster.nodes.push(NodeProcess::new(&format!("node-{index}")));
    }
    cluster.tell_seeds();
    for node in &mut cluster.nodes[first..] {
        node.start();
    }
    let strangers = members(&cluster.nodes[first..]).await;
    let layout = change(&cluster.nodes[0], &Change::Admit(strangers)).await;
    wait_until_taken_up(&cluster.nodes, &layout).await;
}

/// What was not served, and why. A move is planned: nothing may be.
fn unserved(history: &History) -> Vec<String> {
    let why = |action: &Action| match action {
        Action::Put(put) => match &put.outcome {
            WriteOutcome::Done { .. } => None,
            WriteOutcome::Failed(why) | WriteOutcome::Unknown { why, .. } => Some(format!("put: {why}")),
        },
        Action::Delete(removal) => match &removal.outcome {
            WriteOutcome::Done { .. } => None,
            WriteOutcome::Failed(why) | WriteOutcome::Unknown { why, .. } => Some(format!("delete: {why}")),
        },
        Action::Get(ReadOutcome::Unanswered(why)) => Some(format!("get: {why}")),
        Action::Get(_) => None,
    };
    history.operations.iter().filter_map(|operation| why(&operation.action)).collect()
}

#[tokio::test]
async fn three_nodes_become_five_and_three_again_under_load() {
    let mut cluster = Cluster::serving(3).await;
    let load = Load::start("load", &cluster.nodes, 2);
    load.progress(300).await;
    admit(&mut cluster, 2).await;
    load.progress(100).await;
    let joint = move_to(&cluster, &cluster.nodes).await;
    assert!(joint.is_joint());
    let wide = finish(&cluster).await;
    for node in &wide.members {
        assert!((9..=10).contains(&wide.owned(node.node)), "16 partitions of 3 replicas on 5 nodes");
    }
    load.progress(300).await;
    move_to(&cluster, &cluster.nodes[..3]).await;
    let narrow = finish(&cluster).await;
    load.progress(100).await;
    let leavers: BTreeSet<_> =
        members(&cluster.nodes[3..]).await.into_iter().map(|member| member.node).collect();
    assert!(leavers.iter().all(|node| narrow.owned(*node) == 0));
    change(&cluster.nodes[0], &Change::Dismiss(leavers.clone())).await;
    load.progress(100).await;
    let mut history = load.stop().await;
    assert_eq!(unserved(&history), Vec::<String>::new());
    for mut node in cluster.nodes.drain(3..) {
        let ended = node.wait_for_end();
        assert!(ended.log.contains("no member any more"), "{}", ended.log);
        node.start();
        let again = node.member().await;
        assert!(!leavers.contains(&again.node), "it is another one");
    }
    judge_everywhere(&cluster, &mut history).await;
}

/// However many of the old replicas a new one has to hear.
#[tokio::test]
async fn a_move_sends_each_record_once_to_whoever_has_to_have_it_and_nothing_else() {
    const VALUE_BYTES: usize = 2_048;
    let mut cluster = Cluster::serving(3).await;
    let keys: Vec<_> = (0..300).map(|n| format!("moved-{n}")).collect();
    for key in &keys {
        cluster.nodes[0].put(key, &"v".repeat(VALUE_BYTES)).await.unwrap();
    }
    admit(&mut cluster, 1).await;
    let before = layout_of(&cluster.nodes[0]).await;
    move_to(&cluster, &cluster.nodes).await;
    let after = finish(&cluster).await;
    for node in &cluster.nodes {
        let id = node.member().await.node;
        let is_new = |partition| after.is_replica(partition, id) && !before.is_replica(partition, id);
        let joins = before.owned(id) == 0;
        let partitions = after.partitions.all().filter(|partition| is_new(*partition)).count();
        assert_eq!(partitions, if joins { 12 } else { 0 }, "a quarter of 48 replicas");
        let wanted = |key: &&String| {
            is_new(RecordKey::new("default", key.as_bytes()).unwrap().partition(after.partitions))
        };
        let records = keys.iter().filter(wanted).count() as u64;
        assert!(records > 0 || !joins);
        let moved = node.status().await.unwrap().transfer.unwrap();
        assert_eq!(moved.records, records, "of {partitions} partitions");
        let bytes = records * VALUE_BYTES as u64;
        assert!((bytes..=bytes + bytes / 20).contains(&moved.bytes), "{} of {bytes} bytes", moved.bytes);
        wait_until("the metrics say the same", || async {
            let records = node.metric("keystore_transfer_records_total").await?;
            let bytes = node.metric("keystore_transfer_bytes_total").await?;
            let open = node.metric("keystore_transfer_partitions").await?;
            let done = node.metric("keystore_transfer_partitions_done").await?;
            ((records, bytes, open, done) == (moved.records, moved.bytes, 0, 0)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_that_was_dismissed_before_it_heard_that_it_was_a_member_joins_as_a_new_one() {
    let mut cluster = Cluster::serving(3).await;
    let mut stranger = NodeProcess::new("node-3");
    stranger.start();
    let before = stranger.member().await;
    stranger.kill();
    change(&cluster.nodes[0], &Change::Admit(vec![before.clone()])).await;
    let without = change(&cluster.nodes[0], &Change::Dismiss([before.node].into())).await;
    cluster.nodes.push(stranger);
    cluster.tell_seeds();
    let stranger = cluster.nodes.last_mut().unwrap();
    stranger.start();
    let ended = stranger.wait_for_end();
    assert!(ended.log.contains("no member any more"), "{}", ended.log);
    stranger.start();
    let again = stranger.member().await;
    assert_ne!(again.node, before.node);
    let with = change(&cluster.nodes[0], &Change::Admit(vec![again])).await;
    assert_eq!(with.epoch.0, without.epoch.0 + 1);
    wait_until_taken_up(&cluster.nodes, &with).await;
}

#[tokio::test]
async fn a_move_that_is_aborted_and_one_in_which_everybody_dies_lose_nothing() {
    let mut cluster = Cluster::serving(3).await;
    let load = Load::start("first", &cluster.nodes, 2);
    load.progress(300).await;
    admit(&mut cluster, 1).await;
    move_to(&cluster, &cluster.nodes).await;
    change(&cluster.nodes[0], &Change::Abort).await;
    load.progress(50).await;
    let mut history = load.stop().await;
    assert_eq!(unserved(&history), Vec::<String>::new());
    let load = Load::start("second", &cluster.nodes, 1);
    move_to(&cluster, &cluster.nodes).await;
    cluster.nodes.iter_mut().for_each(NodeProcess::kill);
    support::load::append(&mut history, load.stop().await);
    cluster.nodes.iter_mut().for_each(NodeProcess::start);
    cluster.wait_until_all_serve().await;
    finish(&cluster).await;
    judge_everywhere(&cluster, &mut history).await;
}

#[tokio::test]
async fn a_member_that_slept_through_two_moves_is_told_and_begins_anew() {
    let mut cluster = Cluster::serving(3).await;
    let load = Load::start("load", &cluster.nodes[..2], 2);
    load.progress(200).await;
    admit(&mut cluster, 2).await;
    let sleeper = cluster.nodes[2].member().await;
    cluster.nodes[2].signal(Signal::STOP);
    load.progress(50).await;
    let others: Vec<_> = {
        let mut all = members(&cluster.nodes[..2]).await;
        all.extend(members(&cluster.nodes[3..]).await);
        all
    };
    change(&cluster.nodes[0], &Change::Move { members: others, replication_factor: 3 }).await;
    change(&cluster.nodes[0], &Change::Finish).await;
    change(&cluster.nodes[0], &Change::Dismiss(BTreeSet::from([sleeper.node]))).await;
    load.progress(100).await;
    cluster.nodes[2].signal(Signal::CONT);
    let ended = cluster.nodes[2].wait_for_end();
    assert!(ended.log.contains("no member any more"), "{}", ended.log);
    let mut history = load.stop().await;
    cluster.nodes.remove(2);
    judge(&[&cluster.nodes[2], &cluster.nodes[3]], &mut history).await;
}

/// Gives the layout of a recovery to nodes, and waits until they serve under it and have merged what is left.
async fn recover(nodes: &[NodeProcess], layout: &Layout) {
    for node in nodes {
        let request = v1::RecoverRequest { layout: Some(layout.into()) };
        node.admin().recover(request).await.unwrap();
    }
    wait_until_taken_up(nodes, layout).await;
    for node in nodes {
        wait_until("what is left is merged", || async {
            let transfer = node.status().await.ok()?.transfer?;
            (transfer.partitions == transfer.partitions_done).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn two_of_five_go_on_with_all_that_any_of_them_held() {
    let mut cluster = Cluster::serving(5).await;
    let before = layout_of(&cluster.nodes[0]).await;
    for n in 0..200 {
        let request = v1::PutRequest {
            key: format!("k{n}").into(),
            value: format!("v{n}").into(),
            consistency: v1::Consistency::All.into(),
            ..v1::PutRequest::default()
        };
        cluster.nodes[n % 5].client().put(request).await.unwrap();
    }
    let all = members(&cluster.nodes).await;
    let left: BTreeSet<_> = all[..2].iter().map(|member| member.node).collect();
    cluster.nodes[2..].iter_mut().for_each(NodeProcess::kill);

    let losses = Losses { nodes: all[2..].iter().map(|member| member.node).collect(), ..Losses::default() };
    let attempt = |number| Incarnation { number, id: number * 7 };
    let first = before.recovered(attempt(2), &losses).unwrap();
    let answer = cluster.nodes[0].admin();
    let accept = |layout: &Layout| v1::RecoverRequest { layout: Some(layout.into()) };
    answer.clone().recover(accept(&first)).await.unwrap();
    let status = cluster.nodes[0].status().await.unwrap();
    assert_eq!(status.state(), v1::NodeState::Accepted, "not all that are left have accepted it");
    assert!(answer.clone().recover(accept(&before.recovered(attempt(2), &losses).unwrap())).await.is_ok());
    let other = Layout { incarnation: Incarnation { number: 2, id: 1 }, ..first.clone() };
    assert!(answer.clone().recover(accept(&other)).await.is_err(), "another attempt of the same number");
    // Whoever accepted the first attempt takes a second one, and dies in between.
    let second = first.recovered(attempt(3), &losses).unwrap();
    answer.clone().recover(accept(&second)).await.unwrap();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_for_status().await;
    recover(&cluster.nodes[..2], &second).await;

    let held = |n: usize| {
        let key = RecordKey::new("default", format!("k{n}").as_bytes()).unwrap();
        let replicas = before.ring().nodes(key.partition(before.partitions));
        replicas.iter().any(|node| left.contains(node))
    };
    let check = async |node: &NodeProcess| {
        let mut lost = 0;
        for n in 0..200 {
            let value = node.get_when_possible(&format!("k{n}")).await;
            let expected = held(n).then(|| format!("v{n}"));
            lost += usize::from(expected.is_none());
            assert_eq!(value, expected, "k{n}");
        }
        lost
    };
    let lost = check(&cluster.nodes[0]).await;
    assert!(lost < 100, "most partitions had a replica that is left: {lost}");

    // Back to full strength: what was salvaged stands, and the data moves to a new node too.
    let finished = change(&cluster.nodes[0], &Change::Finish).await;
    assert!(finished.salvaged.is_empty());
    let mut lost_nodes = cluster.nodes.split_off(2);
    admit(&mut cluster, 1).await;
    move_to(&cluster, &cluster.nodes).await;
    let full = finish(&cluster).await;
    assert_eq!(full.ring().check_full(3), Ok(()));
    check(&cluster.nodes[2]).await;

    // One that was called lost comes back: nobody takes it for what it was.
    let seeds = cluster.nodes[0].gossip_address();
    let back = &mut lost_nodes[0];
    back.set("gossip.seeds", &seeds);
    back.start();
    let ended = back.wait_for_end();
    assert!(ended.log.contains("no member any more"), "{}", ended.log);
    back.start();
    assert_ne!(back.member().await.node, all[2].node, "it is another one");
}

#[tokio::test]
async fn a_node_tells_which_layouts_it_has_taken_up_also_after_a_restart() {
    let mut cluster = Cluster::serving(1).await;
    admit(&mut cluster, 1).await;
    let told = async |node: &NodeProcess| {
        let response = node.admin().get_layout_history(v1::GetLayoutHistoryRequest {}).await.unwrap();
        let history = history_from_wire(response.into_inner().history.unwrap()).unwrap();
        history.entries().cloned().collect::<Vec<_>>()
    };
    let entries = told(&cluster.nodes[0]).await;
    let differences: Vec<_> =
        entries.iter().map(|entry| entry.changes.clone().unwrap().differences).collect();
    assert_eq!(differences, [vec![Difference::First], vec![Difference::Admitted(1)]]);
    assert!(entries.iter().all(|entry| entry.taken_up_ms.is_some()));
    let of_other = told(&cluster.nodes[1]).await;
    let [joined] = &of_other[..] else { panic!("it knows one layout") };
    assert_eq!((joined.epoch.0, &joined.changes), (2, &None), "and none before that");
    cluster.nodes[0].signal(Signal::TERM);
    cluster.nodes[0].wait_for_end();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_it_serves().await;
    assert_eq!(told(&cluster.nodes[0]).await, entries);
}
