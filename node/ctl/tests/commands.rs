//! The commands against fake nodes: what goes to stdout and stderr, and the exit status.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ran;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keystore_client::fake::{FakeCluster, Misbehaviour, outcome};
use ran::{Ran, command, command_on, run_on};
use tonic::Code;

fn run_with_stdin(cluster: &FakeCluster, arguments: &[&str], stdin: &[u8]) -> Ran {
    let mut command = command_on(cluster);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that refuses early may not read all of it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap().into()
}

#[test]
fn what_was_put_is_got_raw_and_with_nothing_added() {
    let cluster = FakeCluster::serving(3).unwrap();
    let put = run_on(&cluster, &["put", "greeting", "hello"]);
    assert_eq!((put.status, put.stderr.as_str()), (0, ""));
    let stamp = put.text().trim_end();
    assert_eq!(stamp.len(), 32, "a stamp: {stamp}");
    let get = run_on(&cluster, &["get", "greeting"]);
    assert_eq!((get.status, get.stdout.as_slice(), get.stderr.as_str()), (0, &b"hello"[..], ""));
    let json = run_on(&cluster, &["get", "greeting", "-o", "json"]).json();
    assert_eq!(json, serde_json::json!({"values": ["hello"], "encoding": "utf-8", "stamp": stamp}));
}

#[test]
fn a_value_of_any_bytes_passes_through_stdin_and_stdout() {
    let cluster = FakeCluster::serving(1).unwrap();
    let value: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let put = run_with_stdin(&cluster, &["put", "bytes", "-", "-o", "json"], &value);
    assert_eq!(put.status, 0, "{}", put.stderr);
    assert_eq!((&put.json()["acks"], &put.json()["durability"]), (&3.into(), &"synced".into()));
    assert_eq!(run_on(&cluster, &["get", "bytes"]).stdout, value);
    let json = run_on(&cluster, &["get", "bytes", "-o", "json"]).json();
    assert_eq!(json["encoding"], "base64");
    let empty = run_with_stdin(&cluster, &["put", "empty", "-"], b"");
    assert_eq!(empty.status, 0);
    let get = run_on(&cluster, &["get", "empty"]);
    assert_eq!((get.status, get.stdout.len()), (0, 0), "an empty value is a value");
}

#[test]
fn a_key_that_does_not_exist_has_an_exit_status_of_its_own() {
    let cluster = FakeCluster::serving(1).unwrap();
    let get = run_on(&cluster, &["get", "nobody"]);
    assert_eq!((get.status, get.text(), get.stderr.as_str()), (3, "", "keystorectl: no such key\n"));
    let delete = run_on(&cluster, &["delete", "nobody"]);
    assert_eq!(delete.status, 0, "deleting what does not exist is done");
    run_on(&cluster, &["put", "k", "v"]);
    run_on(&cluster, &["delete", "k"]);
    assert_eq!(run_on(&cluster, &["get", "k"]).status, 3);
}

#[test]
fn every_outcome_has_its_exit_status_and_its_json() {
    let cases = [
        (outcome(Code::Unavailable, "QUORUM_UNREACHABLE", 1, 2), 4),
        (outcome(Code::ResourceExhausted, "DISK_FULL", 1, 2), 4),
        (outcome(Code::ResourceExhausted, "TOO_MANY_SIBLINGS", 1, 2), 4),
        (outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2), 5),
        (outcome(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 1, 2), 5),
        (outcome(Code::FailedPrecondition, "WRONG_CLUSTER", 1, 2), 6),
    ];
    for (status, exit) in cases {
        let cluster = FakeCluster::serving(1).unwrap();
        (0..20).for_each(|_| cluster.nodes[0].misbehave(Misbehaviour::Answer(status.clone())));
        let put = run_on(&cluster, &["put", "k", "v", "--timeout", "300ms", "-o", "json"]);
        assert_eq!((put.status, put.text()), (exit, ""), "{}", put.stderr);
        let error = put.error();
        assert_eq!((&error["acks"], &error["needed"]), (&1.into(), &2.into()), "{error}");
        assert!(!error["reason"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_write_that_nobody_answers_is_unknown_and_a_read_has_failed() {
    let cluster = FakeCluster::serving(1).unwrap();
    (0..2).for_each(|_| cluster.nodes[0].misbehave(Misbehaviour::Hang));
    assert_eq!(run_on(&cluster, &["put", "k", "v", "--timeout", "200ms"]).status, 5);
    assert_eq!(run_on(&cluster, &["get", "k", "--timeout", "200ms"]).status, 4);
}

#[test]
fn what_cannot_be_reached_or_parsed_is_told_in_one_sentence() {
    let mut cluster = FakeCluster::serving(1).unwrap();
    cluster.nodes[0].crash();
    for arguments in [&["get", "k"][..], &["put", "k", "v"], &["status"], &["ring"], &["nodes"], &["bench"]] {
        let ran = run_on(&cluster, arguments);
        assert_eq!((ran.status, ran.text()), (7, ""), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    let json = run_on(&cluster, &["get", "k", "-o", "json"]);
    assert_eq!(json.error()["reason"], "CANNOT_CONNECT");
    for arguments in [
        &["put", "k"][..],
        &["frobnicate"],
        &["get", "k", "--timeout", "5"],
        &["get", "k", "--consistency", "most"],
        &["get", "k", "-n", "somewhere"],
        &["bench", "--read-share", "2"],
        &["put", "k", "v", "--ttl", "0s"],
        &["put", "k", "v", "--context", "not a token"],
        &["delete", "k", "--ttl", "1h"],
        &["scan", "--limit", "0"],
        &["init", "--create-keyspace", "carts"],
    ] {
        let ran = run_on(&cluster, arguments);
        assert_eq!((ran.status, ran.text()), (2, ""), "{arguments:?}: {}", ran.stderr);
        let with_json = [arguments, &["-o", "json"]].concat();
        assert_eq!(run_on(&cluster, &with_json).error()["reason"], "USAGE", "{with_json:?}");
    }
    assert_eq!(run_on(&cluster, &["--help"]).status, 0);
    assert_eq!(run_on(&cluster, &["--version"]).status, 0);
}

#[test]
fn a_request_that_breaks_a_limit_is_a_usage_error_and_an_unknown_keyspace_is_refused() {
    let cluster = FakeCluster::serving(1).unwrap();
    assert_eq!(run_on(&cluster, &["get", ""]).status, 2);
    assert_eq!(run_on(&cluster, &["get", &"k".repeat(1025)]).status, 2);
    let too_large = vec![0; (1 << 20) + 1];
    assert_eq!(run_with_stdin(&cluster, &["put", "k", "-"], &too_large).status, 2);
    assert_eq!(run_on(&cluster, &["get", "k", "--keyspace", "nothing"]).status, 6);
}

#[test]
fn siblings_are_shown_a_line_each_until_a_write_with_their_context_replaces_them() {
    let cluster = FakeCluster::serving(3).unwrap();
    let run = |arguments: &[&str]| run_on(&cluster, &[arguments, &["--keyspace", "siblings"]].concat());
    for value in ["one", "two"] {
        assert_eq!(run(&["put", "k", value]).status, 0);
    }
    assert_eq!(run(&["get", "k"]).text(), "one\ntwo\n");
    let read = run(&["get", "k", "-o", "json"]).json();
    assert_eq!(read["values"], serde_json::json!(["one", "two"]));
    let context = read["context"].as_str().unwrap();
    let put = run(&["put", "k", "three", "--context", context, "-o", "json"]);
    assert_eq!(put.status, 0, "{}", put.stderr);
    assert_eq!(run(&["get", "k"]).text(), "three");
    let late = run(&["put", "k", "late", "--context", context]);
    assert_eq!(late.status, 0, "{}", late.stderr);
    assert_eq!(run(&["get", "k"]).text(), "three\nlate\n", "it had not seen the other");
    let newer = put.json()["context"].as_str().unwrap().to_owned();
    assert_eq!(run(&["delete", "k", "--context", &newer]).status, 0);
    assert_eq!(run(&["get", "k"]).text(), "late");
    assert_eq!(run(&["delete", "k"]).status, 0, "without a context: whatever is there");
    assert_eq!(run(&["get", "k"]).status, 3);
}

#[test]
fn a_context_that_does_not_fit_is_refused() {
    let cluster = FakeCluster::serving(1).unwrap();
    let put = run_on(&cluster, &["put", "k", "v", "--keyspace", "siblings", "-o", "json"]);
    let context = put.json()["context"].as_str().unwrap().to_owned();
    for arguments in [
        ["put", "other", "v", "--keyspace", "siblings", "--context", &context],
        ["put", "k", "v", "--keyspace", "default", "--context", &context],
        ["put", "k", "v", "--keyspace", "siblings", "--context", "AAAA"],
    ] {
        let ran = run_on(&cluster, &arguments);
        assert_eq!((ran.status, ran.text()), (6, ""), "{arguments:?}: {}", ran.stderr);
    }
    assert_eq!(cluster.writes_applied(), 1);
}

#[test]
fn a_value_is_gone_when_its_time_is_up() {
    let cluster = FakeCluster::serving(1).unwrap();
    assert_eq!(run_on(&cluster, &["put", "long", "v", "--ttl", "30d"]).status, 0);
    assert_eq!(run_on(&cluster, &["put", "short", "v", "--ttl", "1ms"]).status, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while run_on(&cluster, &["get", "short"]).status != 3 {
        assert!(Instant::now() < deadline, "it lives on");
    }
    assert_eq!(run_on(&cluster, &["get", "long"]).text(), "v");
}

#[test]
fn scan_prints_each_key_with_its_values() {
    let cluster = FakeCluster::serving(3).unwrap();
    assert_eq!((run_on(&cluster, &["scan"]).status, run_on(&cluster, &["scan"]).text()), (0, ""));
    assert_eq!(run_on(&cluster, &["scan", "-o", "json"]).json(), serde_json::json!([]));
    for n in 0..10 {
        run_on(&cluster, &["put", &format!("a/{n}"), &format!("value {n}")]);
    }
    run_on(&cluster, &["put", "b", "other"]);
    let all = run_on(&cluster, &["scan", "--prefix", "a/"]);
    let lines: Vec<_> = all.text().lines().collect();
    assert_eq!((all.status, lines.len()), (0, 10), "{}", all.stderr);
    assert!(lines.contains(&"a/7\tvalue 7"));
    let fourth = lines[3].split('\t').next().unwrap();
    let some = run_on(&cluster, &["scan", "--prefix", "a/", "--after", fourth, "--limit", "3"]);
    assert_eq!(some.text().lines().collect::<Vec<_>>(), lines[4..7]);
    run_with_stdin(&cluster, &["put", "c", "-"], b"\xff\x00");
    let json = run_on(&cluster, &["scan", "-o", "json"]).json();
    let entries = json.as_array().unwrap();
    assert_eq!(entries.len(), 12);
    let of = |key: &str| entries.iter().find(|entry| entry["key"] == key).unwrap();
    assert_eq!((&of("b")["values"], &of("b")["encoding"]), (&serde_json::json!(["other"]), &"utf-8".into()));
    assert_eq!(
        (&of("Yw==")["values"], &of("Yw==")["encoding"]),
        (&serde_json::json!(["/wA="]), &"base64".into())
    );
    for value in ["x", "y"] {
        run_on(&cluster, &["put", "s", value, "--keyspace", "siblings"]);
    }
    assert_eq!(run_on(&cluster, &["scan", "--keyspace", "siblings"]).text(), "s\tx\ns\ty\n");
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let cluster = FakeCluster::serving(1).unwrap();
    run_on(&cluster, &["put", "k", "v"]);
    for arguments in [&["ring"][..], &["scan"], &["get", "k"], &["status"], &["nodes", "-o", "json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = command_on(&cluster).args(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ran = Ran::from(ran.wait_with_output().unwrap());
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn that_there_is_no_quorum_is_told_after_each_node_was_asked_once() {
    let cluster = FakeCluster::serving(3).unwrap();
    for node in &cluster.nodes {
        let unreachable = outcome(Code::Unavailable, "QUORUM_UNREACHABLE", 1, 2);
        (0..9).for_each(|_| node.misbehave(Misbehaviour::Answer(unreachable.clone())));
    }
    for command in [&["put", "k", "v"][..], &["get", "k"], &["scan"]] {
        let before = cluster.requests();
        assert_eq!(run_on(&cluster, command).status, 4);
        assert_eq!(cluster.requests() - before, 3, "{command:?}");
    }
}

#[test]
fn init_creates_the_keyspaces_that_are_named() {
    let cluster = FakeCluster::uninitialized(1).unwrap();
    let arguments = ["init", "--replication-factor", "1", "--create-keyspace", "siblings=siblings"];
    let ran = run_on(&cluster, &arguments);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(cluster.keyspaces(), ["default=lww", "siblings=siblings"]);
    let other = FakeCluster::uninitialized(1).unwrap();
    let ran = run_on(&other, &["init", "--replication-factor", "1", "--create-keyspace", "default=siblings"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    for wrong in [&["carts=siblings", "carts=lww"][..], &["A b=lww"]] {
        let flags = wrong.iter().flat_map(|keyspace| ["--create-keyspace", keyspace]);
        let arguments: Vec<_> = ["init", "--replication-factor", "1"].into_iter().chain(flags).collect();
        let ran = run_on(&other, &arguments);
        assert_eq!(ran.status, 2, "{wrong:?}: {}", ran.stderr);
    }
    assert_eq!(run_on(&other, &["get", "k"]).status, 6, "nothing was initialised");
}

#[test]
fn init_refuses_what_a_cluster_was_not_made_with() {
    let cluster = FakeCluster::uninitialized(1).unwrap();
    let arguments = ["init", "--replication-factor", "1", "--create-keyspace", "siblings=siblings"];
    assert_eq!(run_on(&cluster, &arguments).status, 0);
    for same in [&arguments[..], &["init"], &["init", "--partitions", "256"]] {
        assert_eq!(run_on(&cluster, same).status, 0, "{same:?}");
    }
    for (other, reason) in [
        (["--replication-factor", "3"], "with replication factor 1"),
        (["--partitions", "64"], "with 256 partitions"),
        (["--create-keyspace", "carts=siblings"], "with no keyspace carts"),
        (["--create-keyspace", "siblings=lww"], "with a keyspace siblings of another mode"),
    ] {
        let ran = run_on(&cluster, &[&["init"], &other[..]].concat());
        assert_eq!(ran.status, 6, "{other:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(reason), "{}", ran.stderr);
    }
}

#[test]
fn init_makes_a_cluster_once() {
    let cluster = FakeCluster::uninitialized(3).unwrap();
    assert_eq!(run_on(&cluster, &["get", "k"]).status, 6, "nothing serves before init");
    let status = run_on(&cluster, &["status"]);
    assert_eq!((status.status, status.text()), (0, "not initialised: 3 nodes belong to no cluster\n"));
    assert_eq!(run_on(&cluster, &["init", "--replication-factor", "4"]).status, 2);
    assert_eq!(run_on(&cluster, &["init", "--partitions", "100"]).status, 2);
    let first = run_on(&cluster, &["init", "--partitions", "32", "-o", "json"]);
    assert_eq!(first.status, 0, "{}", first.stderr);
    assert_eq!(first.json()["initialized"], true);
    let again = run_on(&cluster, &["init", "-o", "json"]);
    assert_eq!(again.json()["initialized"], false);
    assert_eq!(again.json()["clusterId"], first.json()["clusterId"]);
    let status = run_on(&cluster, &["status", "-o", "json"]).json();
    assert_eq!(status["clusterId"], first.json()["clusterId"]);
    assert_eq!((&status["members"], &status["membersServing"]), (&3.into(), &3.into()));
    assert_eq!((&status["partitions"], &status["partitionsAvailable"]), (&32.into(), &32.into()));
    assert_eq!(run_on(&cluster, &["put", "k", "v"]).status, 0);
}

#[test]
fn init_does_nothing_unless_every_node_answers() {
    let mut cluster = FakeCluster::uninitialized(3).unwrap();
    cluster.nodes[1].crash();
    assert_eq!(run_on(&cluster, &["init"]).status, 7);
    cluster.nodes[1].restart().unwrap();
    assert!(run_on(&cluster, &["status"]).text().starts_with("not initialised"));
    let twice = cluster.nodes[0].admin_endpoint();
    let ran = command().args(["init", "--admin-endpoint", &twice, "--admin-endpoint", &twice]).output();
    assert_eq!(Ran::from(ran.unwrap()).status, 2);
}

#[test]
fn init_does_not_mix_clusters() {
    let one = FakeCluster::serving(1).unwrap();
    let other = FakeCluster::uninitialized(1).unwrap();
    let endpoints = [one.nodes[0].admin_endpoint(), other.nodes[0].admin_endpoint()].join(",");
    let mut init = command();
    init.args(["init", "--replication-factor", "1", "--admin-endpoint", &endpoints]);
    let ran = Ran::from(init.output().unwrap());
    assert_eq!(ran.status, 6, "{}", ran.stderr);
}

#[test]
fn nodes_and_ring_show_every_member_and_partition() {
    let mut cluster = FakeCluster::serving(3).unwrap();
    let nodes = run_on(&cluster, &["nodes"]);
    let lines: Vec<_> = nodes.text().lines().collect();
    assert!(lines[0].starts_with("NAME    ID "), "{}", lines[0]);
    assert_eq!(lines.len(), 4);
    assert!(lines[1].starts_with("fake-0 ") && lines[1].contains(" serving ") && lines[1].contains(" 2/2 "));
    let ring = run_on(&cluster, &["ring"]);
    assert_eq!(ring.text().lines().count(), 17);
    let json = run_on(&cluster, &["ring", "-o", "json"]).json();
    assert_eq!(json[15]["owners"].as_array().unwrap().len(), 3);
    cluster.nodes[2].crash();
    let json = run_on(&cluster, &["nodes", "-o", "json"]).json();
    assert_eq!((&json[2]["name"], &json[2]["state"]), (&"fake-2".into(), &"unreachable".into()));
    assert_eq!(run_on(&cluster, &["status", "-o", "json"]).json()["membersServing"], 2);
}

#[test]
fn bench_counts_what_it_did() {
    let arguments =
        ["bench", "--clients", "7", "--threads", "2", "--seconds", "1", "--keys", "50", "-o", "json"];
    let calls = FakeCluster::serving(3).unwrap();
    check_bench(&calls, &arguments);
    assert!(calls.nodes.iter().all(|node| node.sessions() == 0));
    let sessions = FakeCluster::serving(3).unwrap();
    check_bench(&sessions, &[&arguments[..], &["--session"]].concat());
    let opened: usize = sessions.nodes.iter().map(|node| node.sessions()).sum();
    assert!((1..=6).contains(&opened), "one a node for each thread: {opened}");
}

fn check_bench(cluster: &FakeCluster, arguments: &[&str]) {
    let ran = run_on(cluster, arguments);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let report = ran.json();
    let [get, put] = &report["operations"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&get["operation"], &put["operation"]), (&"get".into(), &"put".into()));
    assert_eq!(cluster.writes_applied(), 50 + done(put));
    assert_eq!(
        cluster.requests(),
        1 + 50 + done(put) + done(get),
        "the first sees whether it can work at all"
    );
    for of in [get, put] {
        assert_eq!((&of["missing"], &of["failed"], &of["unknown"]), (&0.into(), &0.into(), &0.into()));
        assert!(of["p99Ms"].as_f64().unwrap() >= of["p50Ms"].as_f64().unwrap());
    }
}

fn done(of: &serde_json::Value) -> usize {
    usize::try_from(of["done"].as_u64().unwrap()).unwrap()
}

fn run_bench(cluster: &FakeCluster, arguments: &str) -> Ran {
    let arguments: Vec<_> = ["bench"].into_iter().chain(arguments.split_whitespace()).collect();
    run_on(cluster, &arguments)
}

#[test]
fn bench_ends_after_as_many_operations_as_it_was_told_at_a_rate_or_not() {
    for pace in ["", "--rate 2000", "--distribution zipf --threads 3"] {
        let cluster = FakeCluster::serving(3).unwrap();
        let ran =
            run_bench(&cluster, &format!("--operations 300 --keys 20 --clients 5 -o json --quiet {pace}"));
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{pace}");
        let report = ran.json();
        let sum: usize = report["operations"].as_array().unwrap().iter().map(done).sum();
        assert_eq!((sum, &report["notSent"], &report["unanswered"]), (300, &0.into(), &0.into()), "{pace}");
        let hottest = report.get("hottestKey").map(done);
        match pace.contains("zipf") {
            // A quarter of them; a twentieth if it were uniform.
            true => assert!(hottest.unwrap() > 30, "{report}"),
            false => assert_eq!(hottest, None),
        }
    }
}

#[test]
fn bench_deletes_what_it_has_written_and_nothing_else() {
    for arguments in ["", "--read-share 0", "--skip-preload --read-share 0.3"] {
        let cluster = FakeCluster::serving(3).unwrap();
        assert_eq!(run_on(&cluster, &["put", "mine/other", "v"]).status, 0);
        let common = "--cleanup --prefix mine/ --operations 100 --keys 40 --clients 4 --value-bytes 0-50";
        let ran = run_bench(&cluster, &format!("{common} {arguments}"));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(cluster.writes_applied() > 50, "{arguments}");
        assert_eq!(run_on(&cluster, &["scan"]).text(), "mine/other\tv\n", "{arguments}");
        assert!(ran.stderr.lines().last().unwrap().starts_with("deleted "), "{}", ran.stderr);
    }
}

#[test]
fn bench_counts_what_is_not_done_and_fails_only_if_nothing_is() {
    let full = || Misbehaviour::Answer(outcome(Code::ResourceExhausted, "DISK_FULL", 0, 2));
    let cluster = FakeCluster::serving(1).unwrap();
    // One for the request that sees whether it can work at all.
    (0..4).for_each(|_| cluster.nodes[0].misbehave(full()));
    let ran = run_bench(&cluster, "--read-share 0 --operations 10 --clients 2 -o json");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let put = &ran.json()["operations"][0];
    assert_eq!((done(put), &put["failed"], &put["overloaded"]), (7, &3.into(), &0.into()));
    assert_eq!((&put["errors"][0]["reason"], &put["errors"][0]["count"]), (&"DISK_FULL".into(), &3.into()));
    let overloaded = || Misbehaviour::Answer(outcome(Code::ResourceExhausted, "OVERLOADED", 0, 2));
    (0..1000).for_each(|_| cluster.nodes[0].misbehave(overloaded()));
    let ran = run_bench(&cluster, "--read-share 0 --operations 3 --clients 3 --quiet -o json");
    assert_eq!((ran.status, &ran.error()["reason"]), (4, &"OVERLOADED".into()));
    let put = &ran.json()["operations"][0];
    assert_eq!((done(put), &put["failed"], &put["overloaded"]), (0, &0.into(), &3.into()));
}

#[test]
fn bench_writes_its_keys_however_often_that_fails_at_first() {
    let cluster = FakeCluster::serving(1).unwrap();
    for reason in ["DISK_FULL", "TOO_MANY_SIBLINGS", "DISK_FULL"] {
        cluster.nodes[0].misbehave(Misbehaviour::Answer(outcome(Code::ResourceExhausted, reason, 0, 2)));
    }
    let ran = run_bench(&cluster, "--keys 30 --read-share 1 --operations 200 --clients 2 -o json");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(cluster.writes_applied(), 30);
    let get = &ran.json()["operations"][0];
    assert_eq!((done(get), &get["missing"]), (200, &0.into()));
    let gone = run_bench(&cluster, "--skip-preload --prefix gone/ --read-share 1 --operations 20 -o json");
    assert_eq!(gone.json()["operations"][0]["missing"], 20);
    let stays_full = || Misbehaviour::Answer(outcome(Code::ResourceExhausted, "DISK_FULL", 0, 2));
    (0..1000).for_each(|_| cluster.nodes[0].misbehave(stays_full()));
    let ran = run_bench(&cluster, "--keys 30 --clients 1 --quiet -o json");
    assert_eq!((ran.status, ran.text(), &ran.error()["reason"]), (4, "", &"DISK_FULL".into()));
}

#[test]
fn bench_says_at_once_that_it_cannot_work() {
    let cluster = FakeCluster::serving(1).unwrap();
    let long = "x".repeat(1015);
    for (arguments, status) in [
        ("--keyspace nothing", 6),
        (&format!("--prefix {long}"), 2),
        ("--rate 0", 2),
        ("--value-bytes 9-3", 2),
        ("--operations 0", 2),
        ("--seconds 0", 2),
        ("--distribution normal", 2),
    ] {
        let ran = run_bench(&cluster, arguments);
        assert_eq!((ran.status, ran.text()), (status, ""), "{arguments}: {}", ran.stderr);
    }
    assert_eq!(cluster.writes_applied(), 0);
}

#[test]
fn bench_reports_what_it_has_measured_when_it_is_interrupted() {
    for signal in ["INT", "TERM"] {
        let cluster = FakeCluster::serving(1).unwrap();
        let mut command = command_on(&cluster);
        command.args([
            "bench",
            "--seconds",
            "3600",
            "--keys",
            "10",
            "--clients",
            "3",
            "--cleanup",
            "-o",
            "json",
        ]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("measuring") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it measures");
        }
        while cluster.requests() < 100 {
            std::thread::yield_now();
        }
        let killed = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(killed.unwrap().success());
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.status, 0);
        let report = ran.json();
        assert_eq!((&report["interrupted"], &report["unanswered"]), (&true.into(), &0.into()));
        assert!(done(&report["operations"][0]) > 0);
        assert_eq!(run_on(&cluster, &["scan"]).text(), "", "the keys are deleted all the same");
    }
}
