//! `layout`, and what the other commands show while data moves, against fake nodes that let layouts follow each other by
//! the rules of core.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ran;

use std::process::Stdio;
use std::time::{Duration, Instant};

use keystore_client::fake::{FakeCluster, Fate, outcome};
use keystore_client::{Change, Epoch, KeyspaceMode, Layout};
use ran::{Ran, command, command_on, run_on};
use serde_json::{Value, json};
use tonic::Code;

/// Three nodes that serve, and a fourth that can join.
fn with_a_spare() -> FakeCluster {
    FakeCluster::with_spares(3, 1).unwrap()
}

/// What is typed to move the data of [`with_a_spare`] to all four.
fn grow(cluster: &FakeCluster) -> String {
    format!("--nodes fake-0,fake-1,fake-2,fake-3 --join {}", cluster.nodes[3].admin_endpoint())
}

fn run_layout(cluster: &FakeCluster, arguments: &str) -> Ran {
    let arguments: Vec<_> = ["layout"].into_iter().chain(arguments.split_whitespace()).collect();
    run_on(cluster, &arguments)
}

/// Runs it, has it done, and returns what it says as JSON.
fn done(cluster: &FakeCluster, arguments: &str) -> Value {
    let ran = run_layout(cluster, &format!("{arguments} -o json"));
    assert_eq!(ran.status, 0, "{arguments}: {}", ran.stderr);
    ran.json()
}

fn layout(cluster: &FakeCluster) -> Layout {
    cluster.layout().unwrap()
}

fn epoch(cluster: &FakeCluster) -> u64 {
    layout(cluster).epoch.0
}

fn keyspace(name: &str) -> Change {
    Change::Keyspaces([(name.to_owned(), KeyspaceMode::Lww)].into())
}

/// It ends with this status and reason, and a sentence with this part.
fn check_refused(ran: &Ran, (status, reason, part): (i32, &str, &str)) {
    assert_eq!((ran.status, ran.text()), (status, ""), "{}", ran.stderr);
    let error = ran.error();
    assert_eq!(error["reason"], reason, "{error}");
    assert!(error["message"].as_str().unwrap().contains(part), "{error}");
}

#[test]
fn plan_shows_what_moves_and_changes_nothing() {
    let cluster = with_a_spare();
    let plan = run_layout(&cluster, &format!("plan {}", grow(&cluster)));
    assert_eq!((plan.status, plan.stderr.as_str()), (0, ""));
    let lines: Vec<_> = plan.text().lines().collect();
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(columns(lines[0]), ["NAME", "NOW", "THEN", "GAINED", "LOST", "RECEIVES"]);
    // 16 partitions of three replicas each over four nodes; 1 MiB a partition.
    assert_eq!(columns(lines[4]), ["fake-3", "0", "12", "12", "0", "about", "12.6M", "bytes"]);
    assert!(
        lines[5].starts_with("in all 12 partitions gained, 12 lost, to be received: about "),
        "{}",
        lines[5]
    );
    assert_eq!(
        lines[6..],
        ["epoch 1, stable", "epoch 2, stable: fake-3 admitted", "epoch 3, joint: data begins to move"]
    );
    let json = done(&cluster, &format!("plan {}", grow(&cluster)));
    assert_eq!((&json["epoch"], &json["gained"], &json["lost"]), (&1.into(), &12.into(), &12.into()));
    assert_eq!(json["bytes"], 12 << 20);
    let new = &json["nodes"][3];
    assert_eq!((&new["partitionsNow"], &new["partitionsThen"]), (&0.into(), &12.into()));
    assert_eq!((&new["gained"], &new["bytes"]), (&12.into(), &(12 << 20).into()));
    assert_eq!(epoch(&cluster), 1);
}

#[test]
fn plan_shows_every_kind_of_change() {
    let cluster = with_a_spare();
    let step = |what: &str| {
        let json = done(&cluster, &format!("plan {what}"));
        json["steps"].as_array().unwrap().last().map(|step| step["step"].as_str().unwrap().to_owned())
    };
    assert_eq!(step("--nodes fake-2,fake-1,fake-0"), None);
    assert_eq!(step("--lost fake-1").unwrap(), "nothing moves");
    assert_eq!(step("--create-keyspace carts=siblings").unwrap(), "nothing moves");
    cluster.take_over(0);
    done(&cluster, &format!("propose {}", grow(&cluster)));
    assert_eq!(step("--abort").unwrap(), "the move ends");
    let json = done(&cluster, "plan --abort");
    assert_eq!((&json["nodes"][3]["lost"], &json["bytes"]), (&12.into(), &0.into()));
    let finish = run_layout(&cluster, "plan --finish");
    let last = finish.text().lines().last().unwrap().to_owned();
    assert!(last.starts_with("not yet: partition ") && last.contains("fake-3"), "{last}");
    assert_eq!(epoch(&cluster), 3);
}

#[test]
fn propose_admits_new_nodes_before_data_moves_to_them() {
    let cluster = with_a_spare();
    let ran = run_layout(&cluster, &format!("propose {} --zone fake-3=z", grow(&cluster)));
    assert_eq!((ran.status, ran.text()), (0, "epoch 3, joint\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr, "epoch 2 decided: fake-3 admitted\n");
    let layout = layout(&cluster);
    let member = layout.member(cluster.nodes[3].node_id()).unwrap();
    assert_eq!((member.name.as_str(), member.zone.as_str(), layout.phase_since), ("fake-3", "z", Epoch(3)));
    assert_eq!(done(&cluster, "propose --finish"), json!({"epoch": 4, "phase": "stable", "changed": true}));
}

#[test]
fn no_data_moves_before_all_members_know_each_other() {
    for (disturb, part) in [
        (&(|cluster: &FakeCluster| cluster.nodes[1].cut_off()) as &dyn Fn(&FakeCluster), "has no link to"),
        (&|cluster| cluster.nodes[1].hold_at(Some(Epoch(1))), "acknowledge"),
    ] {
        let cluster = with_a_spare();
        disturb(&cluster);
        let ran = run_layout(&cluster, &format!("propose {} --wait --timeout 1s -o json", grow(&cluster)));
        check_refused(&ran, (1, "NOT_ACKNOWLEDGED", part));
        check_refused(&ran, (1, "NOT_ACKNOWLEDGED", "fake-3 became members with epoch 2"));
        assert!(epoch(&cluster) == 2 && !layout(&cluster).is_joint());
    }
}

#[test]
fn wait_goes_on_until_the_data_has_moved_and_ends_the_move() {
    let cluster = with_a_spare();
    cluster.take_over(7);
    let ran = run_layout(&cluster, &format!("propose {} --wait --timeout 60s", grow(&cluster)));
    assert_eq!((ran.status, ran.text()), (0, "epoch 4, stable\n"), "{}", ran.stderr);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!(lines[..2], ["epoch 2 decided: fake-3 admitted", "epoch 3, joint: data moves"]);
    // Each of 12 partitions at its three new replicas, at most 7 a node and look.
    assert!(lines[2].starts_with("28 of 36 partitions taken over, 29.4M bytes; partition "), "{}", lines[2]);
    assert_eq!(lines[3..], ["36 of 36 partitions taken over, 37.7M bytes"]);
    assert!(!layout(&cluster).is_joint() && layout(&cluster).owned(cluster.nodes[3].node_id()) == 12);
}

#[test]
fn wait_ends_with_the_reason_when_its_time_is_up_and_can_be_repeated() {
    let cluster = with_a_spare();
    cluster.take_over(0);
    let ran =
        run_layout(&cluster, &format!("propose {} --wait --timeout 1s --quiet -o json", grow(&cluster)));
    check_refused(&ran, (1, "STILL_MOVING", "not merged yet by fake-"));
    assert_eq!(ran.stderr.lines().count(), 1, "it is quiet: {}", ran.stderr);
    assert_eq!(epoch(&cluster), 3);
    let ran = run_layout(&cluster, "propose --finish -o json");
    check_refused(&ran, (6, "LAYOUT_REFUSED", "not merged yet by fake-"));
    cluster.take_over(16);
    let json = done(&cluster, "propose --finish --wait --quiet");
    assert_eq!(json, json!({"epoch": 4, "phase": "stable", "changed": true}));
}

#[test]
fn wait_sees_that_somebody_else_has_ended_the_move() {
    for (change, is_aborted) in [(Change::Finish, false), (Change::Abort, true)] {
        let cluster = with_a_spare();
        cluster.take_over(0);
        done(&cluster, &format!("propose {}", grow(&cluster)));
        // Each of the four nodes once before it waits, and once while it does.
        let looks = cluster.statuses() + 8;
        let mut command = command_on(&cluster);
        command.args(["layout", "propose", "--finish", "--wait", "-o", "json", "--quiet"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while cluster.statuses() < looks {
            assert!(Instant::now() < deadline, "it looks");
            std::thread::sleep(Duration::from_millis(5));
        }
        if !is_aborted {
            // Its own may be first.
            cluster.take_over_all();
        }
        assert!(cluster.change(&change).is_ok() || !is_aborted);
        let ran = Ran::from(child.wait_with_output().unwrap());
        match is_aborted {
            true => check_refused(&ran, (6, "MOVE_ENDED", "aborted")),
            false => assert_eq!((ran.status, &ran.json()["epoch"]), (0, &4.into()), "{}", ran.stderr),
        }
    }
}

#[test]
fn wait_survives_that_a_proposal_of_the_end_is_lost_or_refused() {
    for fate in [
        Fate::Answer(outcome(Code::FailedPrecondition, "LAYOUT_REFUSED", 0, 0)),
        Fate::Answer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 0, 0)),
        Fate::DecideAndAnswer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 0, 0)),
        Fate::TooLate(keyspace("carts")),
        Fate::Outvoted(keyspace("carts")),
    ] {
        let cluster = with_a_spare();
        done(&cluster, &format!("propose {}", grow(&cluster)));
        cluster.fate_of_proposal(fate.clone());
        let json = done(&cluster, "propose --finish --wait --quiet --timeout 60s");
        assert_eq!((&json["phase"], &json["changed"]), (&"stable".into(), &true.into()), "{fate:?}");
        assert!(!layout(&cluster).is_joint());
    }
}

#[test]
fn a_node_that_leaves_is_dismissed_once_it_holds_nothing_and_then_is_none() {
    let cluster = FakeCluster::serving(3).unwrap();
    let ran = run_layout(&cluster, "propose --nodes fake-0,fake-1 -o json");
    check_refused(&ran, (6, "LAYOUT_REFUSED", "replication factor"));
    let cluster = with_a_spare();
    done(&cluster, &format!("propose {} --wait", grow(&cluster)));
    let ran = run_layout(&cluster, "propose --dismiss fake-0 -o json");
    check_refused(&ran, (6, "LAYOUT_REFUSED", "fake-0 holds data"));
    done(&cluster, "propose --nodes fake-1,fake-2,fake-3 --wait");
    done(&cluster, "propose --dismiss fake-0");
    let now = layout(&cluster);
    assert_eq!((now.members.len(), now.departed.len()), (3, 1));
    let join = format!("propose --nodes fake-0,fake-1,fake-2 --join {}", cluster.nodes[0].admin_endpoint());
    check_refused(&run_layout(&cluster, &format!("{join} -o json")), (6, "DEPARTED", "has departed"));
}

#[test]
fn a_lost_node_is_shown_as_lost_and_its_data_goes_to_others() {
    let mut cluster = with_a_spare();
    cluster.nodes[0].crash();
    let dead = cluster.nodes[0].node_id();
    assert_eq!(done(&cluster, &format!("propose --lost {dead}"))["epoch"], 2);
    assert!(layout(&cluster).is_lost(dead));
    let nodes = run_on(&cluster, &["nodes", "-o", "json"]).json();
    assert_eq!((&nodes[0]["name"], &nodes[0]["state"]), (&"fake-0".into(), &"lost".into()));
    let ran = run_layout(&cluster, "propose --nodes fake-0,fake-1,fake-2 -o json");
    check_refused(&ran, (6, "NODE_LOST", "fake-0 is lost"));
    let join = cluster.nodes[3].admin_endpoint();
    let json = done(&cluster, &format!("propose --nodes fake-1,fake-2,fake-3 --join {join} --wait"));
    assert_eq!(json, json!({"epoch": 5, "phase": "stable", "changed": true}));
    assert_eq!(layout(&cluster).owned(dead), 0);
}

#[test]
fn keyspaces_are_added_and_what_is_so_already_is_no_change() {
    let cluster = FakeCluster::serving(3).unwrap();
    let flags = "--create-keyspace carts=siblings --create-keyspace sessions=lww";
    assert_eq!(done(&cluster, &format!("propose {flags}"))["epoch"], 2);
    assert_eq!(cluster.keyspaces(), ["carts=siblings", "default=lww", "sessions=lww", "siblings=siblings"]);
    let again = run_layout(&cluster, &format!("propose {flags}"));
    assert_eq!((again.status, again.text()), (0, "epoch 2, stable: nothing would change\n"));
    let ran = run_layout(&cluster, "propose --create-keyspace carts=lww -o json");
    check_refused(&ran, (6, "LAYOUT_REFUSED", "carts"));
}

#[test]
fn abort_brings_the_data_back_to_where_it_was() {
    let cluster = with_a_spare();
    check_refused(&run_layout(&cluster, "abort -o json"), (6, "LAYOUT_REFUSED", "no data is moving"));
    cluster.take_over(0);
    done(&cluster, &format!("propose {}", grow(&cluster)));
    let again = run_layout(&cluster, "propose --nodes fake-0,fake-1,fake-3 -o json");
    check_refused(&again, (6, "LAYOUT_REFUSED", "propose --finish --wait, or abort"));
    let ran = run_layout(&cluster, "abort");
    assert_eq!((ran.status, ran.text(), ran.stderr.as_str()), (0, "epoch 4, stable\n", ""));
    assert_eq!(layout(&cluster).owned(cluster.nodes[3].node_id()), 0);
}

#[test]
fn whoever_cannot_join_is_told_why_and_nothing_is_done() {
    let mut cluster = with_a_spare();
    let other = FakeCluster::serving(1).unwrap();
    other.found_anew();
    let check = |cluster: &FakeCluster, joiner: &str, expected: (i32, &str, &str)| {
        for command in ["plan", "propose"] {
            let nodes = "--nodes fake-0,fake-1,fake-2";
            check_refused(
                &run_layout(cluster, &format!("{command} {nodes} --join {joiner} -o json")),
                expected,
            );
        }
        assert_eq!(epoch(cluster), 1);
    };
    check(&cluster, &cluster.nodes[1].admin_endpoint(), (6, "ALREADY_MEMBER", "fake-1 at 127.0.0.1:"));
    check(&cluster, &cluster.nodes[1].admin_endpoint(), (6, "ALREADY_MEMBER", "without --join"));
    check(&cluster, &other.nodes[0].admin_endpoint(), (6, "WRONG_CLUSTER", "belongs to another cluster"));
    let spare = cluster.nodes[3].admin_endpoint();
    check(&cluster, &spare, (2, "USAGE", "fake-3"));
    check(&cluster, &format!("{spare},{spare}"), (2, "USAGE", "the same node"));
    cluster.nodes[3].crash();
    check(&cluster, &spare, (7, "CANNOT_CONNECT", "has to answer first, nothing was done"));
}

#[test]
fn names_that_lead_to_no_node_or_to_several_are_refused() {
    // The spare of one cluster is called as a member of the other.
    let cluster = FakeCluster::serving(3).unwrap();
    let other = FakeCluster::uninitialized(1).unwrap();
    for what in ["--nodes fake-0,fake-9", "--lost fake-9", "--dismiss fake-9"] {
        let ran = run_layout(&cluster, &format!("propose {what} -o json"));
        check_refused(
            &ran,
            (6, "NODE_UNKNOWN", "no node is called fake-9: there are fake-0, fake-1, fake-2"),
        );
    }
    let join = other.nodes[0].admin_endpoint();
    let ran = run_layout(&cluster, &format!("propose --nodes fake-0,fake-1,fake-2 --join {join} -o json"));
    check_refused(&ran, (6, "NODE_AMBIGUOUS", &other.nodes[0].node_id().to_string()));
    let ids = format!("{},fake-1,{}", cluster.nodes[0].node_id(), other.nodes[0].node_id());
    let plan = done(&cluster, &format!("plan --nodes {ids} --join {join}"));
    assert_eq!(plan["steps"].as_array().unwrap().len(), 2, "a UUID leads to one node");
}

#[test]
fn a_layout_that_somebody_else_has_changed_meanwhile_is_left_to_them() {
    let late = (6, "STALE_EPOCH", "somebody else has changed the layout");
    let unknown = |exit| (exit, "OUTCOME_UNKNOWN", "whether epoch 2 is in force is shown by status");
    for (fate, expected, epoch_then) in [
        (Fate::TooLate(keyspace("theirs")), late, 2),
        (Fate::Outvoted(keyspace("theirs")), late, 2),
        (Fate::Answer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 0, 0)), unknown(5), 1),
        (Fate::DecideAndAnswer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 0, 0)), unknown(5), 2),
        (Fate::Answer(outcome(Code::Unavailable, "OVERLOADED", 0, 0)), (4, "OVERLOADED", "OVERLOADED"), 1),
    ] {
        let cluster = FakeCluster::serving(3).unwrap();
        cluster.fate_of_proposal(fate.clone());
        let ran = run_layout(&cluster, "propose --create-keyspace ours=lww -o json");
        check_refused(&ran, expected);
        assert_eq!(epoch(&cluster), epoch_then, "{fate:?}");
    }
}

#[test]
fn exactly_one_change_is_asked_for_at_a_time() {
    let cluster = FakeCluster::serving(1).unwrap();
    for what in [
        "propose",
        "plan",
        "propose --finish --abort",
        "propose --nodes fake-0 --lost fake-1",
        "propose --finish --join a:1",
        "plan --nodes fake-0 --wait",
        "propose --nodes fake-0 --weight fake-0=0",
        "propose --nodes fake-0 --zone z",
        "propose --create-keyspace carts",
        "propose --create-keyspace A=lww",
        "propose --create-keyspace a=lww --create-keyspace a=siblings",
        "history --finish",
    ] {
        let ran = run_layout(&cluster, what);
        assert_eq!((ran.status, ran.text()), (2, ""), "{what}: {}", ran.stderr);
    }
    assert_eq!(epoch(&cluster), 1);
}

#[test]
fn clusters_are_not_mixed_and_a_cluster_has_to_be_there() {
    let (one, other) = (FakeCluster::serving(1).unwrap(), FakeCluster::serving(1).unwrap());
    other.found_anew();
    let endpoints = [one.nodes[0].admin_endpoint(), other.nodes[0].admin_endpoint()].join(",");
    let mut mixed = command();
    mixed.args(["layout", "propose", "--lost", "fake-0", "-o", "json", "--admin-endpoint", &endpoints]);
    check_refused(&mixed.output().unwrap().into(), (6, "WRONG_CLUSTER", "different clusters"));
    let mut none = FakeCluster::uninitialized(1).unwrap();
    check_refused(&run_layout(&none, "plan --finish -o json"), (6, "NOT_INITIALIZED", "initialised"));
    none.nodes[0].crash();
    check_refused(&run_layout(&none, "propose --finish -o json"), (7, "CANNOT_CONNECT", ""));
}

#[test]
fn status_and_ring_show_how_data_moves() {
    let cluster = with_a_spare();
    let stable = run_on(&cluster, &["status"]);
    assert!(stable.text().contains("Epoch:       1, stable\n") && !stable.text().contains("Moving"));
    let json = run_on(&cluster, &["status", "-o", "json"]).json();
    assert_eq!((&json["phase"], json.get("transfer"), &json["behind"]), (&"stable".into(), None, &json!([])));
    done(&cluster, &format!("propose {}", grow(&cluster)));
    cluster.take_over(2);
    let json = run_on(&cluster, &["status", "-o", "json"]).json();
    assert_eq!((&json["epoch"], &json["phase"]), (&3.into(), &"joint".into()));
    assert_eq!(
        (&json["transfer"]["partitions"], &json["transfer"]["partitionsDone"]),
        (&36.into(), &8.into())
    );
    assert!(json["transfer"]["waitsFor"].as_str().unwrap().contains("fake-3"), "{json}");
    let joint = run_on(&cluster, &["status"]);
    for part in [
        "Epoch:       3, joint\n",
        "Moving:      16 of 36 partitions taken over, 16.8M bytes",
        ", about 90 s left\n",
        "Waits for:   ",
    ] {
        assert!(joint.text().contains(part), "{part}: {}", joint.text());
    }
    let ring = run_on(&cluster, &["ring"]);
    assert!(ring.text().starts_with("PARTITION  OWNERS                NEXT OWNERS\n"), "{}", ring.text());
    assert_eq!(ring.text().matches("fake-3").count(), 12);
    let json = run_on(&cluster, &["ring", "-o", "json"]).json();
    let lengths =
        |of: &Value| (of["owners"].as_array().unwrap().len(), of["nextOwners"].as_array().unwrap().len());
    assert!(json.as_array().unwrap().iter().all(|partition| lengths(partition) == (3, 3)));
    cluster.take_over(16);
    done(&cluster, "propose --finish --wait --quiet");
    assert!(run_on(&cluster, &["ring"]).text().starts_with("PARTITION  OWNERS\n"));
}

#[test]
fn status_shows_who_has_not_acknowledged_the_layout() {
    let cluster = FakeCluster::serving(3).unwrap();
    cluster.nodes[1].hold_at(Some(Epoch(1)));
    done(&cluster, "propose --create-keyspace carts=lww");
    let json = run_on(&cluster, &["status", "-o", "json"]).json();
    let node = cluster.nodes[1].node_id().to_string();
    assert_eq!(json["behind"], json!([{"name": "fake-1", "nodeId": node, "epoch": 1}]));
    let text = run_on(&cluster, &["status"]);
    assert!(text.text().contains("Behind:      fake-1, has acknowledged epoch 1"), "{}", text.text());
    cluster.nodes[1].hold_at(None);
    assert_eq!(run_on(&cluster, &["status", "-o", "json"]).json()["behind"], json!([]));
}

#[test]
fn a_recovery_is_shown_before_it_is_made_and_made_once() {
    let cluster = FakeCluster::serving(3).unwrap();
    let recover = |arguments: &str| {
        let arguments: Vec<_> = ["recover"].into_iter().chain(arguments.split_whitespace()).collect();
        run_on(&cluster, &arguments)
    };
    check_refused(&recover("--lost fake-2 -o json"), (6, "NODE_ALIVE", "fake-2 is named lost, and answers"));
    check_refused(&recover("--lost nobody -o json"), (6, "NODE_UNKNOWN", "no node is called nobody"));
    let shown = recover("-o json").json();
    assert_eq!((&shown["done"], &shown["incarnation"]), (&false.into(), &2.into()));
    assert_eq!(layout(&cluster).incarnation.number, 1, "nothing was done");
    for _ in 0..2 {
        let done = recover("--yes -o json").json();
        assert_eq!((&done["done"], &done["salvaged"]), (&true.into(), &0.into()));
        assert_eq!(done["left"], json!(["fake-0", "fake-1", "fake-2"]));
        assert_eq!(layout(&cluster).incarnation.number, 2);
    }
}

#[test]
fn a_recovery_waits_for_whoever_is_silent_or_in_doubt_until_a_person_has_named_them() {
    let mut cluster = FakeCluster::serving(3).unwrap();
    cluster.nodes[0].doubt(0..4);
    cluster.nodes[1].doubt(2..6);
    cluster.nodes[2].crash();
    let recover = |arguments: &str| {
        let arguments: Vec<_> = ["recover"].into_iter().chain(arguments.split_whitespace()).collect();
        run_on(&cluster, &arguments)
    };
    for (arguments, reason, part) in [
        ("--yes -o json", "NODE_SILENT", "gives no answer and is not named lost"),
        ("--lost fake-2 --yes -o json", "IN_DOUBT", "fake-0 is in doubt of keys in 4 of 16 partitions"),
        ("--lost fake-2 --accept-in-doubt fake-0 --yes -o json", "IN_DOUBT", "fake-1 is in doubt"),
    ] {
        check_refused(&recover(arguments), (6, reason, part));
    }
    assert_eq!(cluster.layout().unwrap().incarnation.number, 1, "nothing was done");
    let shown = recover("--lost fake-2 --accept-in-doubt fake-0,fake-1 -o json").json();
    assert_eq!(
        (&shown["salvaged"], &shown["gone"]),
        (&6.into(), &0.into()),
        "no quorum is left that can be trusted"
    );
    assert_eq!((&shown["left"], &shown["lost"]), (&json!(["fake-0", "fake-1"]), &json!(["fake-2"])));
}

#[test]
fn the_history_tells_of_each_layout_when_it_came_and_what_it_changed() {
    let cluster = with_a_spare();
    done(&cluster, &format!("propose {}", grow(&cluster)));
    let ran = run_layout(&cluster, "history");
    let lines: Vec<_> = ran.text().lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.text());
    assert!(lines[0].starts_with("EPOCH  INC  PHASE   TAKEN UP              CHANGE"), "{}", lines[0]);
    for (line, parts) in [
        (lines[1], ["1 ", " stable ", "2023-11-14T22:13:21Z", "first"]),
        (lines[2], ["2 ", " stable ", "2023-11-14T22:13:22Z", "admit 1"]),
        (lines[3], ["3 ", " joint ", "2023-11-14T22:13:23Z", "begin"]),
    ] {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let json = run_layout(&cluster, "history -o json").json();
    assert!(json["node"].as_str().unwrap().starts_with("fake-"), "{json}");
    let last = &json["layouts"][2];
    assert_eq!((&last["epoch"], &last["phase"], &last["skipped"]), (&3.into(), &"joint".into(), &0.into()));
    assert_eq!(last["changes"][0], json!({"what": "begin"}));
    assert_eq!(json["layouts"][1]["changes"][0], json!({"what": "admit", "count": 1}));
    assert_eq!((&last["partitionsMoved"], &last["members"]), (&12.into(), &4.into()));
    let none = FakeCluster::uninitialized(1).unwrap();
    check_refused(&run_layout(&none, "history -o json"), (6, "NOT_INITIALIZED", "initialised"));
}
