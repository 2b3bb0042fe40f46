//! The history of layouts: what is noted of each, and that nothing hangs on it.

use std::fs;
use std::path::Path;

use keystore_core::effect::{SaveId, SavedState};
use keystore_core::history::{Changes, Difference, Entry};
use keystore_core::id::{ClusterId, Incarnation};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::succession::Change;

use super::{DEADLINE, identity, memory_dir, open, options, run};

fn layout() -> Layout {
    let me = identity();
    let member = Member {
        node: me.node,
        actor: me.actor,
        name: "n".into(),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: 1,
        members: vec![member],
        keyspaces: Default::default(),
    })
    .unwrap()
}

fn with_keyspace(layout: &Layout) -> Layout {
    layout.next(&Change::Keyspaces([("more".to_owned(), KeyspaceMode::Lww)].into())).unwrap()
}

/// What is shown after these layouts were saved, in one run of the node.
fn after(directory: &Path, layouts: &[(Layout, bool)]) -> Vec<Entry> {
    let storage = open(&options(directory.to_owned()));
    let shown = storage.history();
    let running = run(storage);
    for (id, (layout, decided)) in (1..).zip(layouts) {
        let state = SavedState::Layout { layout: layout.clone(), decided: *decided };
        running.storage.handle().save(SaveId(id), state);
        running.saved.recv_timeout(DEADLINE).unwrap();
    }
    let entries = shown.borrow().entries().cloned().collect();
    running.storage.shutdown().unwrap();
    entries
}

fn differences(entries: &[Entry]) -> Vec<Option<Vec<Difference>>> {
    let of = |entry: &Entry| entry.changes.as_ref().map(|changes| changes.differences.clone());
    entries.iter().map(of).collect()
}

#[test]
fn each_layout_in_force_is_noted_with_its_time_and_still_known_after_a_restart() {
    let directory = memory_dir();
    let (first, second) = (layout(), with_keyspace(&layout()));
    let entries = after(directory.path(), &[(first.clone(), false), (first, true), (second.clone(), true)]);
    let expected = [Some(Changes::of_first().differences), Some(vec![Difference::Keyspaces(1)])];
    assert_eq!(differences(&entries), expected);
    assert!(entries.iter().all(|entry| entry.taken_up_ms.is_some_and(|ms| ms > 1_700_000_000_000)));
    assert_eq!(after(directory.path(), &[]), entries);
    let third = second.next(&Change::Keyspaces([("most".to_owned(), KeyspaceMode::Lww)].into())).unwrap();
    let later = after(directory.path(), &[(third, true)]);
    assert_eq!((&later[..2], later[2].epoch.0), (&entries[..], 3));
    assert_eq!(differences(&later)[2], Some(vec![Difference::Keyspaces(1)]));
}

#[test]
fn a_history_that_is_damaged_or_missing_is_begun_anew_with_the_layout_in_force() {
    let directory = memory_dir();
    let file = directory.path().join("history");
    after(directory.path(), &[(layout(), true), (with_keyspace(&layout()), true)]);
    let mut content = fs::read(&file).unwrap();
    content[20] ^= 1;
    for damaged in [Some(content), None] {
        match damaged {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let entries = after(directory.path(), &[]);
        let [entry] = &entries[..] else { panic!("it is one layout") };
        assert_eq!((entry.epoch.0, entry.taken_up_ms, &entry.changes), (2, None, &None));
    }
}
