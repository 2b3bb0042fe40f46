//! Sources of which others say that they are back as a later generation: what was taken for theirs may have been said by a
//! copy of their disk, which has less.

use keystore_core::effect::{Effect, Event};
use keystore_core::id::{Generation, NodeId};
use keystore_core::layout::Layout;
use keystore_core::message::{Header, Message, Noted, Page, ReadOutcome, ScanRange};
use keystore_core::partition::Partition;

use crate::bench::effects::commit_in;
use crate::bench::{PEER, key, now};
use crate::epochs::node;
use crate::linked::Linked;
use crate::moving::{
    Said, asked, empty, joined, joiner, meet_what_cannot_be_read, note_the_doubt, raise, replacing_the_third,
    say_whole, take_over, three_and_one,
};

/// What somebody has noted of the replicas of a partition who has met a later generation of the peer, or nobody.
fn noted(layout: &Layout, partition: Partition, has_met: bool) -> Noted {
    let of = |node| if node == PEER && has_met { 8 } else { 0 };
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
        for (from, has_met) in [(PEER, false), (node(4), has_met)] {
            let noted = noted(&joint, partition, has_met);
            let answer = Message::ReadAnswer { call, outcome: ReadOutcome::Missing, noted };
            effects = linked.frame((from, epoch), answer);
        }
        assert_eq!(commit_in(&effects).is_some(), !has_met, "{effects:?}");
    }
}

/// Of three sources, which say that they hold nothing, one is silent, and one may have met another since.
fn two_of_three(layout: &Layout, has_met: bool) -> impl Fn(NodeId, &ScanRange) -> Option<Said> + use<> {
    let layout = layout.clone();
    move |from, range| {
        let noted = noted(&layout, range.partition, has_met && from == node(3));
        empty().filter(|_| from != node(4)).map(|outcome| Said(outcome, noted))
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

#[test]
pub(crate) fn what_was_merged_of_a_source_that_others_have_met_since_counts_once_it_is_met() {
    let (mut linked, joint) = joiner();
    assert!(take_over(&mut linked, two_of_three(&joint, false)).is_some());
    let (mut linked, joint) = joiner();
    assert_eq!(take_over(&mut linked, two_of_three(&joint, true)), None);
    assert_eq!(linked.node.status(now(1)).transfer.done, 0);
    linked.greet(Header { generation: Generation(8), ..Linked::header(PEER, joint.epoch.0) });
    for at_ms in (700_000..710_000).step_by(100) {
        for effect in linked.tick(at_ms) {
            if let Effect::Scan { load, .. } = effect {
                linked.step(Event::Scanned { load, page: Ok(Page::default()) });
            }
        }
    }
    assert!(linked.node.status(now(1)).transfer.done > 0, "it had only started anew");
}
