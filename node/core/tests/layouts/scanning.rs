//! What a scan has come to before it is answered: each key of its page is held by a quorum until then.

use keystore_core::effect::{Answer, Effect, Event, Failure, FailureReason, Operation};
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
fn what_a_replica_has_said_counts_for_no_key_of_the_page_once_it_has_lost_something() {
    let [held, written_back] = two_keys();
    let partition = held.partition(first_layout(4, 3).partitions);
    let range = ScanRange { partition, prefix: Default::default(), after: None, limit: 10 };
    let (mut linked, before) = begin(&Operation::Scan { keyspace: "default".to_owned(), range });
    let [(first, Message::Scan { call, .. }), (second, _)] = before[..] else { panic!("{before:?}") };
    let mut effects = Vec::new();
    for (from, keys) in [(first, vec![&held, &written_back]), (second, vec![&held])] {
        let mut entries: Vec<_> = keys.into_iter().map(|key| (key.clone(), record(5))).collect();
        entries.sort_by(|(a, _), (b, _)| a.place().cmp(&b.place()));
        let outcome = ScanOutcome::Page(Page { entries, is_cut: false });
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
    for (to, message) in writes.iter().filter(|(to, _)| *to != second) {
        let Message::Write(write) = message else { panic!("{message:?}") };
        let outcome = WriteOutcome::Held(Durability::Synced);
        let answer = Message::WriteAnswer { call: write.call, outcome, noted: Vec::new() };
        effects.extend::<Vec<Effect>>(linked.frame((*to, 1), answer));
    }
    let answer = answer_in(&effects);
    assert!(
        matches!(answer, Some(Answer::Failed(Failure { reason, needed: 2, .. })) if *reason == FailureReason::QuorumUnreachable),
        "one replica is left that holds the other key: {answer:?}"
    );
}
