//! Sources of which others say that they are back as a later generation: what was taken for theirs may have been said by a
//! copy of their disk, which has less.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::effect::{Effect, Event};
use keystore_core::id::{Generation, NodeId};
use keystore_core::layout::Layout;
use keystore_core::message::{Header, Message, Noted, Page, ReadOutcome, ScanRange};
use keystore_core::partition::Partition;

use crate::bench::effects::commit_in;
use crate::bench::{PEER, key, now};
use crate::doubting::{
    asked, meet_what_cannot_be_read, note_the_doubt, raise, replacing_the_third, say_whole, three_and_one,
};
use crate::epochs::node;
use crate::linked::Linked;
use crate::moving::{Said, empty, joined, joiner, take_over};

/// What somebody has noted of the replicas of a partition who has met a later generation of one of them, or nobody.
fn noted(layout: &Layout, partition: Partition, met: Option<NodeId>) -> Noted {
    let of = |node| if Some(node) == met { 8 } else { 0 };
    layout.replica_sets(partition).nodes().map(|node| Generation(of(node))).collect()
}

/// The last one of two that are enough has met the first one since.
#[test]
pub(crate) fn a_key_does_not_heal_by_the_answer_that_says_who_was_a_copy() {
    for has_met in [false, true] {
        let joint = replacing_the_third(&three_and_one());
        let epoch = joint.epoch.0;
        let mut linked = Linked::new((joint.clone(), true), &[PEER, node(4)].map(|peer| (peer, epoch)));
        raise(&mut linked, &joint);
        say_whole(&mut linked, &joint);
        let call = asked(linked.tick(120_000)).expect("these two are enough");
        let partition = key().partition(joint.partitions);
        let mut effects = Vec::new();
        for (from, met) in [(PEER, None), (node(4), has_met.then_some(PEER))] {
            let noted = noted(&joint, partition, met);
            let answer = Message::ReadAnswer { call, outcome: ReadOutcome::Missing, noted };
            effects = linked.frame((from, epoch), answer);
        }
        assert_eq!(commit_in(&effects).is_some(), !has_met, "{effects:?}");
    }
}

/// Of three sources, which say that they hold nothing, one is silent; of the others, whoever says so last may have met the
/// other one since.
fn two_of_three(layout: &Layout, has_met: bool) -> impl FnMut(NodeId, &ScanRange) -> Option<Said> + use<> {
    let (layout, mut asked) = (layout.clone(), BTreeMap::new());
    move |from, range| {
        if from == node(4) {
            return None;
        }
        let first = *asked.entry(range.partition).or_insert(from);
        let met = Some(first).filter(|first| has_met && *first != from);
        empty().map(|outcome| Said(outcome, noted(&layout, range.partition, met)))
    }
}

#[test]
pub(crate) fn a_partition_does_not_heal_by_the_page_that_says_who_was_a_copy() {
    for has_met in [false, true] {
        let (mut linked, joint) = joined();
        let effects = meet_what_cannot_be_read(&mut linked, &joint);
        note_the_doubt(&mut linked, &joint, &effects);
        let healed = take_over(&mut linked, two_of_three(&joint, has_met));
        assert_eq!(healed.is_some(), !has_met);
    }
}

/// It is merged once more, as soon as it can be asked.
#[test]
pub(crate) fn what_was_merged_of_a_source_that_others_have_met_since_counts_no_longer() {
    let (mut linked, joint) = joiner();
    assert!(take_over(&mut linked, two_of_three(&joint, false)).is_some());
    let (mut linked, joint) = joiner();
    assert_eq!(take_over(&mut linked, two_of_three(&joint, true)), None);
    assert_eq!(linked.node.status(now(1)).transfer.done, 0);
    let epoch = joint.epoch.0;
    let mut asked = BTreeSet::new();
    linked.greet(Header { generation: Generation(8), ..Linked::header(PEER, epoch) });
    for at_ms in (700_000..710_000).step_by(100) {
        for effect in linked.tick(at_ms) {
            let Effect::Scan { load, .. } = effect else { continue };
            for sent in linked.step(Event::Scanned { load, page: Ok(Page::default()) }) {
                if let Effect::Send { header, message: Message::Scan { .. }, .. } = sent {
                    asked.insert(header.to);
                }
            }
        }
    }
    assert!(asked.contains(&PEER), "{asked:?}");
}
