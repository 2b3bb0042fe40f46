//! What a scan has come to before it is answered: each key of its page is held by a quorum until then.

use std::collections::BTreeSet;

use keystore_core::effect::{Answer, Event, Operation};
use keystore_core::id::{Generation, Nonce};
use keystore_core::message::{Header, Hello, Message, Page, ScanOutcome, ScanRange, WriteOutcome};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;

use crate::bench::effects::answer_in;
use crate::bench::{first_layout, record};
use crate::linked::{Linked, saves};
use crate::reissued::{asked, begin, key_elsewhere};

/// Two keys of one partition, of which this node is no replica.
fn two_keys() -> [RecordKey; 2] {
    let count = first_layout(4, 3).partitions;
    let first = key_elsewhere("default");
    let mut others = (0..).map(|n| RecordKey::new("default", format!("other-{n}").as_bytes()).unwrap());
    let second = others.find(|key| key.partition(count) == first.partition(count)).unwrap();
    [first, second]
}

#[test]
fn a_scan_begins_anew_once_a_replica_that_holds_a_key_of_its_page_has_lost_something() {
    let [held, written_back] = two_keys();
    let partition = held.partition(first_layout(4, 3).partitions);
    let range = ScanRange { partition, prefix: Default::default(), after: None, limit: 10 };
    let (mut linked, before) = begin(&Operation::Scan { keyspace: "default".to_owned(), range });
    let [(first, Message::Scan { call, .. }), (second, _)] = before[..] else { panic!("{before:?}") };
    let mut effects = Vec::new();
    for (from, keys) in [(first, vec![&held, &written_back]), (second, vec![&held])] {
        let outcome = ScanOutcome::Page(page(&keys));
        effects = linked.frame((from, 1), Message::ScanAnswer { call, outcome, noted: Vec::new() });
    }
    let writes = asked(&effects);
    assert_eq!(writes.len(), 2, "one key is written back to both others: {writes:?}");
    // It has found damage meanwhile, and says so by a later generation.
    let header = Header { generation: Generation(8), ..Linked::header(second, 1) };
    let lineage = [Nonce(8), Nonce(7)].into_iter().collect();
    let hello = Hello { header, lineage };
    let mut effects = linked.step(Event::LinkOffered { link: Linked::link(second), hello });
    for (save, _) in saves(&effects) {
        effects.extend(linked.step(Event::Saved { save }));
    }
    let anew: Vec<_> = asked(&effects);
    let asked_anew: BTreeSet<_> = anew.iter().map(|(to, _)| *to).collect();
    assert_eq!(asked_anew, first_layout(4, 3).replicas(partition).into_iter().collect());
    for (to, message) in writes.iter().filter(|(to, _)| *to != second) {
        let Message::Write(write) = message else { panic!("{message:?}") };
        let outcome = WriteOutcome::Held(Durability::Synced);
        let answer = Message::WriteAnswer { call: write.call, outcome, noted: Vec::new() };
        let effects = linked.frame((*to, 1), answer);
        assert_eq!(answer_in(&effects), None, "one replica is left that holds the other key");
    }
    let mut effects = Vec::new();
    for (to, message) in anew {
        let Message::Scan { call, .. } = message else { panic!("{message:?}") };
        let outcome = ScanOutcome::Page(page(&[&held, &written_back]));
        effects.extend(linked.frame((to, 1), Message::ScanAnswer { call, outcome, noted: Vec::new() }));
    }
    let Some(Answer::Scanned { entries, next: None }) = answer_in(&effects) else { panic!("{effects:?}") };
    assert_eq!(entries.len(), 2);
}

/// These keys, each with the same record.
fn page(keys: &[&RecordKey]) -> Page {
    let mut entries: Vec<_> = keys.iter().map(|key| ((*key).clone(), record(5))).collect();
    entries.sort_by(|(a, _), (b, _)| a.place().cmp(&b.place()));
    Page::whole(entries)
}
