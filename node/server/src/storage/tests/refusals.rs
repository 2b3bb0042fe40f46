//! Directories that are not used: a clear sentence, exit status 3, and not a byte changed.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use keystore_core::effect::{Entry, Hint, SaveId, SavedState};
use keystore_core::id::{Actor, ClusterId, Generation, Incarnation, Lineage, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::quorum::Durability;
use tempfile::TempDir;

use super::{
    DEADLINE, ENGINES, contents, copy_dir, entry, identity, key, memory_dir, open, options, options_for, run,
};
use crate::storage::EngineKind;
use crate::storage::data_dir::DataDir;
use crate::storage::found::{decode_membership, decode_peers, encode_membership, encode_peers};
use crate::storage::log::Reason;
use crate::storage::{NodeStorage, OpenError};

/// The directory of a node that was killed: its log has a tail, and a checkpoint lies before it.
fn killed_node() -> TempDir {
    killed_node_of(EngineKind::Sled)
}

fn killed_node_of(engine: EngineKind) -> TempDir {
    let (origin, killed) = (memory_dir(), memory_dir());
    let running = run(open(&options_for(engine, origin.path().to_owned())));
    for n in 0..20 {
        running.commit(vec![entry(n, n + 1)], Durability::Synced);
    }
    copy_dir(origin.path(), killed.path());
    killed
}

/// Opening fails with this sentence, status 3, and changes nothing.
fn refused(directory: &Path, part_of_sentence: &str) -> OpenError {
    refused_with(EngineKind::Sled, directory, part_of_sentence)
}

fn refused_with(engine: EngineKind, directory: &Path, part_of_sentence: &str) -> OpenError {
    let before = contents(directory);
    let error = NodeStorage::open_checked(&options_for(engine, directory.to_owned())).unwrap_err();
    let sentence = error.to_string();
    assert!(sentence.contains(part_of_sentence), "{sentence}");
    assert_eq!(error.exit_code(), 3, "{sentence}");
    assert!(contents(directory) == before, "something was changed");
    error
}

fn layout(node: NodeId, actor: Actor) -> Layout {
    let member = |node, actor| Member {
        node,
        actor,
        name: "n".into(),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([1; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: 2,
        members: vec![member(node, actor), member(NodeId([9; 16]), Actor(9))],
        keyspaces: Default::default(),
    })
    .unwrap()
}

#[test]
fn a_killed_node_comes_back_with_everything() {
    for engine in ENGINES {
        let directory = killed_node_of(engine);
        let storage = open(&options_for(engine, directory.path().to_owned()));
        assert_eq!(storage.found().generation, Generation(2));
        assert_eq!(storage.found().identity, identity());
        assert_eq!(storage.counters().records_replayed.get(), 20);
        for n in 0..20 {
            assert_eq!(storage.engine().load(&entry(n, 0).0).unwrap(), Some(entry(n, n + 1).1));
        }
    }
}

#[test]
fn a_start_remembers_the_nonces_of_those_before() {
    let directory = memory_dir();
    let starts = [(); 3].map(|()| open(&options(directory.path().to_owned())).found().lineage.clone());
    let presents = starts.each_ref().map(Lineage::present);
    assert_ne!(presents[0], presents[1]);
    assert_eq!(starts[2].iter().collect::<Vec<_>>(), [presents[2], presents[1], presents[0]]);
}

#[test]
fn a_generation_raised_while_running_and_all_hints_are_found_by_the_next_start() {
    for engine in ENGINES {
        let (directory, killed) = (memory_dir(), memory_dir());
        let options = |path: &Path| options_for(engine, path.to_owned());
        let running = run(open(&options(directory.path())));
        let lineage = [Nonce(3), Nonce(3), Nonce(2)].into_iter().collect();
        let raised =
            SavedState::Generation { generation: Generation(7), trusted_since: Generation(6), lineage };
        running.storage.handle().save(SaveId(1), raised);
        running.saved.recv_timeout(DEADLINE).unwrap();
        let hint = |n| Hint { target: NodeId([9; 16]), key: key(n), since_ms: n };
        let done = Entry::HintDone { target: NodeId([9; 16]), key: key(2) };
        let hints = [1, 2, 3].map(|n| Entry::Hint(hint(n)));
        running.commit_entries([&hints[..], &[done]].concat(), Durability::Synced);
        copy_dir(directory.path(), killed.path());
        running.storage.shutdown().unwrap();
        for path in [directory.path(), killed.path()] {
            let storage = open(&options(path));
            assert_eq!(storage.found().generation, Generation(8));
            assert_eq!(storage.found().trusted_since, Generation(6));
            let lineage: Vec<_> = storage.found().lineage.iter().skip(1).collect();
            assert_eq!(lineage, [3, 3, 2].map(Nonce));
            assert_eq!(storage.found().hints, [hint(1), hint(3)], "{engine}");
        }
    }
}

#[test]
fn a_directory_that_was_set_aside_is_that_of_a_new_node() {
    let directory = memory_dir();
    let path = |name: &str| directory.path().join(name);
    let set_aside = |node: u8| {
        let mut options = options(directory.path().to_owned());
        options.new_identity.node = NodeId([node; 16]);
        let storage = open(&options);
        assert_eq!(storage.found().identity.node, NodeId([node; 16]), "a new node");
        let running = run(storage);
        running.storage.handle().save(SaveId(1), SavedState::SetAside);
        running.saved.recv_timeout(DEADLINE).unwrap();
        running.storage.shutdown().unwrap();
    };
    set_aside(1);
    set_aside(2);
    // A crash in the middle of it; and a mark that is not whole is one.
    fs::create_dir(path("set-aside.d.new")).unwrap();
    fs::rename(path("log"), path("set-aside.d.new/log")).unwrap();
    fs::write(path("set-aside"), b"").unwrap();
    set_aside(3);
    assert!(path("set-aside.d/log").is_dir() && path("set-aside.d/identity").is_file());
    // All was moved, and the mark was still there.
    let away = fs::read(path("set-aside.d/identity")).unwrap();
    for name in ["log", "engine"] {
        fs::remove_dir_all(path(name)).unwrap();
    }
    for file in fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() && file != path("set-aside") {
            fs::remove_file(file).unwrap();
        }
    }
    drop(open(&options(directory.path().to_owned())));
    assert_eq!(fs::read(path("set-aside.d/identity")).unwrap(), away, "the latest is kept");
}

#[test]
fn a_directory_is_in_use_for_as_long_as_its_engine_may_write() {
    for engine in [EngineKind::Sled, EngineKind::Lsm] {
        let directory = memory_dir();
        let options = options_for(engine, directory.path().to_owned());
        let storage = open(&options);
        let engine = storage.engine();
        run(storage).storage.shutdown().unwrap();
        let again = NodeStorage::open_checked(&options);
        assert!(matches!(again, Err(OpenError::InUse(_))), "{again:?}");
        drop(engine);
        open(&options);
    }
}

#[test]
fn a_directory_of_another_engine_is_refused() {
    for (made_with, opened_with) in
        [(EngineKind::Sled, EngineKind::Memory), (EngineKind::Memory, EngineKind::Sled)]
    {
        let directory = killed_node_of(made_with);
        let sentence = format!("was made with the storage engine \"{made_with}\"");
        refused_with(opened_with, directory.path(), &sentence);
    }
    // The first release had sled only, and wrote no name.
    let directory = killed_node();
    let name = directory.path().join("storage-engine");
    fs::remove_file(&name).unwrap();
    refused_with(EngineKind::Memory, directory.path(), "was made with the storage engine \"sled\"");
    drop(open(&options(directory.path().to_owned())));
    let directory = killed_node_of(EngineKind::Memory);
    let name = directory.path().join("storage-engine");
    let whole = fs::read(&name).unwrap();
    for byte in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x80;
        fs::write(&name, damaged).unwrap();
        refused_with(EngineKind::Memory, directory.path(), "cannot be trusted");
    }
}

#[test]
fn a_snapshot_that_is_damaged_gone_or_old_is_refused() {
    let directory = memory_dir();
    let options = options_for(EngineKind::Memory, directory.path().to_owned());
    let snapshot = directory.path().join("engine/snapshot");
    let mut snapshots = Vec::new();
    for n in 1..3 {
        let running = run(open(&options));
        running.commit(vec![entry(n, n)], Durability::Synced);
        running.storage.shutdown().unwrap();
        snapshots.push(fs::read(&snapshot).unwrap());
    }
    let mut damaged = snapshots[1].clone();
    damaged[40] ^= 1;
    fs::write(&snapshot, damaged).unwrap();
    refused_with(EngineKind::Memory, directory.path(), "is damaged at byte");
    fs::write(&snapshot, &snapshots[0]).unwrap();
    let error = refused_with(EngineKind::Memory, directory.path(), "has lost records");
    assert!(matches!(error, OpenError::EngineBehind { found: 1, expected: 2, .. }), "{error}");
    fs::remove_file(&snapshot).unwrap();
    refused_with(EngineKind::Memory, directory.path(), "has lost records");
    fs::write(&snapshot, &snapshots[1]).unwrap();
    assert_eq!(open(&options).engine().load(&key(1)).unwrap(), Some(entry(1, 1).1));
}

#[test]
fn every_directory_that_is_made_for_a_node_is_synced_where_it_has_its_name() {
    use crate::storage::file::Operation;
    use crate::storage::power::{Faults, watch};
    use std::sync::{Arc, Mutex};
    let root = memory_dir();
    let synced = Arc::new(Mutex::new(Vec::new()));
    let seen = synced.clone();
    let note = Faults(move |operation, path: &Path| {
        if operation == Operation::SyncDirectory {
            seen.lock().unwrap().push(path.to_owned());
        }
        Ok(())
    });
    let _watched = watch(root.path(), Arc::new(note));
    drop(open(&options(root.path().join("a/b/data"))));
    for above in ["a/b", "a", ""] {
        let path = root.path().join(above);
        let path = if above.is_empty() { root.path() } else { &path };
        assert!(synced.lock().unwrap().iter().any(|synced| synced == path), "{}", path.display());
    }
}

#[test]
fn every_state_that_is_not_whole_is_refused() {
    let good = killed_node();
    for state in
        ["identity", "generation", "stamp-ceiling", "layout", "peers", "checkpoint", "votes", "merges"]
    {
        let directory = memory_dir();
        copy_dir(good.path(), directory.path());
        let path = directory.path().join(state);
        let whole = fs::read(&path).unwrap();
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0x80;
            fs::write(&path, damaged).unwrap();
            refused(directory.path(), "cannot be trusted");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        refused(directory.path(), "cannot be trusted");
        fs::remove_file(&path).unwrap();
        let sentence = if state == "identity" { "identity file is missing" } else { "it is missing" };
        refused(directory.path(), sentence);
    }
}

/// It had one engine, and decided on no layout but the first.
#[test]
fn what_the_first_release_did_not_write_is_there_from_the_first_start_on() {
    let directory = killed_node();
    let later = ["votes", "merges", "storage-engine"];
    let path = |name| directory.path().join(name);
    for name in later {
        fs::remove_file(path(name)).unwrap();
    }
    drop(open(&options(directory.path().to_owned())));
    assert!(later.iter().all(|name| path(name).is_file()));
    fs::remove_file(path("votes")).unwrap();
    refused(directory.path(), "it is missing");
}

#[test]
fn a_hole_in_the_log_is_refused() {
    let directory = killed_node();
    let segment = directory.path().join("log/00000000000000000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[4096 + 70] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let error = refused(directory.path(), "the commit log is damaged in");
    let OpenError::LogDamaged(damaged) = error else { panic!("{error}") };
    assert_eq!((damaged.segment, damaged.offset, damaged.sequence), (segment, 4096, 1));
    assert_eq!(damaged.reason, Reason::SyncedBatch);
}

#[test]
fn a_log_that_is_gone_is_refused() {
    let directory = killed_node();
    fs::remove_file(directory.path().join("log/00000000000000000001.log")).unwrap();
    refused(directory.path(), "the segment is missing");
    fs::remove_dir_all(directory.path().join("log")).unwrap();
    refused(directory.path(), "it is missing");
}

#[test]
fn an_engine_that_lost_what_was_flushed_is_refused() {
    let directory = memory_dir();
    let early = memory_dir();
    let running = run(open(&options(directory.path().to_owned())));
    running.commit(vec![entry(1, 1)], Durability::Synced);
    running.storage.shutdown().unwrap();
    copy_dir(&directory.path().join("engine"), early.path());
    let running = run(open(&options(directory.path().to_owned())));
    running.commit(vec![entry(2, 2)], Durability::Synced);
    running.storage.shutdown().unwrap();

    let engine = directory.path().join("engine");
    fs::remove_dir_all(&engine).unwrap();
    fs::create_dir(&engine).unwrap();
    refused(directory.path(), "has lost records");
    copy_dir(early.path(), &engine);
    let error = NodeStorage::open_checked(&options(directory.path().to_owned())).unwrap_err();
    assert!(matches!(error, OpenError::EngineBehind { found: 1, expected: 2, .. }), "{error}");
}

#[test]
fn foreign_files_and_foreign_clusters_are_refused() {
    let directory = killed_node();
    let foreign = directory.path().join("thesis.txt");
    fs::write(&foreign, "do not lose").unwrap();
    refused(directory.path(), "thesis.txt is not part of a node's data directory");
    fs::remove_file(&foreign).unwrap();
    let foreign = directory.path().join("log/notes");
    fs::write(&foreign, "").unwrap();
    refused(directory.path(), "log/notes is not part");
    fs::remove_file(&foreign).unwrap();

    let mut elsewhere = options(directory.path().to_owned());
    elsewhere.new_identity.cluster_name = "test/other".into();
    let before = contents(directory.path());
    let error = NodeStorage::open_checked(&elsewhere).unwrap_err();
    assert!(error.to_string().contains("belongs to cluster \"test/demo\""), "{error}");
    assert_eq!(error.exit_code(), 3);
    assert!(contents(directory.path()) == before);
}

#[test]
fn a_layout_of_another_node_is_refused() {
    let directory = memory_dir();
    let storage = open(&options(directory.path().to_owned()));
    let me = identity();
    storage.data_dir.save(&SavedState::Layout { layout: layout(me.node, me.actor), decided: true }).unwrap();
    drop(storage);
    let storage = open(&options(directory.path().to_owned()));
    assert_eq!(storage.found().membership, Some((layout(me.node, me.actor), true)));
    storage.data_dir.save(&SavedState::Layout { layout: layout(me.node, Actor(8)), decided: true }).unwrap();
    drop(storage);
    refused(directory.path(), "does not name node");
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = memory_dir();
    let _storage = open(&options(directory.path().to_owned()));
    let error = NodeStorage::open_checked(&options(directory.path().to_owned())).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)));
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn a_directory_is_taken_as_soon_as_the_process_before_has_given_it_up() {
    let directory = memory_dir();
    let held = DataDir::lock(directory.path(), Duration::ZERO).unwrap();
    let waiting = thread::spawn({
        let path = directory.path().to_owned();
        move || DataDir::lock(&path, DEADLINE).map(drop)
    });
    let has_open = |file: &fs::DirEntry| fs::read_link(file.path()).is_ok_and(|to| to == directory.path());
    while fs::read_dir("/proc/self/fd").unwrap().flatten().filter(has_open).count() < 2 {
        assert!(!waiting.is_finished(), "it has not waited");
    }
    drop(held);
    waiting.join().unwrap().unwrap();
}

#[test]
fn an_empty_directory_with_lost_and_found_becomes_that_of_a_new_node() {
    let directory = memory_dir();
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    let storage = open(&options(directory.path().to_owned()));
    assert_eq!((storage.found().generation, storage.found().stamp_ceiling_ms), (Generation(1), 0));
    assert_eq!(storage.found().membership, None);
}

#[test]
fn a_crash_while_a_new_node_is_made_leaves_an_empty_directory() {
    use crate::storage::power::{Faults, watch};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    for at in 0.. {
        let directory = memory_dir();
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        let fault = Faults(move |_, _: &Path| match seen.fetch_add(1, Ordering::SeqCst) {
            call if call == at => Err(std::io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        });
        let watched = watch(directory.path(), Arc::new(fault));
        let result = NodeStorage::open_checked(&options(directory.path().to_owned()));
        drop(watched);
        if let Ok(storage) = result {
            assert!(calls.load(Ordering::SeqCst) <= at || at > 40, "call {at} was not asked for its result");
            drop(storage);
            if calls.load(Ordering::SeqCst) <= at {
                break;
            }
            continue;
        }
        let storage = open(&options(directory.path().to_owned()));
        assert_eq!(storage.found().identity, identity());
        assert!(storage.found().generation.0 <= 2, "failed at call {at}");
    }
}

#[test]
fn segments_too_small_for_the_largest_record_are_a_bad_setting() {
    let directory = memory_dir();
    let error = NodeStorage::open(&options(directory.path().to_owned())).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("storage.segment_bytes is 131072"), "{error}");
}

#[test]
fn payloads_of_layout_and_peers_read_back() {
    let layout = layout(NodeId([7; 16]), Actor(7));
    for membership in [None, Some((&layout, false)), Some((&layout, true))] {
        let expected = membership.map(|(layout, decided)| (layout.clone(), decided));
        assert_eq!(decode_membership(&encode_membership(membership)), Ok(expected));
    }
    let peers = [(NodeId([1; 16]), (Generation(3), Nonce(4))), (NodeId([2; 16]), (Generation(5), Nonce(6)))];
    assert_eq!(decode_peers(&encode_peers(&peers.into())), Ok(peers.into()));
}
