//! What a node remembers of the layouts that it has taken up: a line for each, for people.
//!
//! What has changed is a function of two layouts alone. Nothing is decided by any of it: a history that is lost begins
//! anew. Invariant: the lines are in the order of their layouts, each layout has one, and there are at most
//! [`ENTRIES_MAX`] of them.

use std::collections::{BTreeSet, VecDeque};

use crate::id::{Epoch, Incarnation, NodeId};
use crate::layout::{Layout, Phase};
use crate::partition::Partition;
use crate::ring::Ring;

/// The oldest lines go first.
pub const ENTRIES_MAX: usize = 64;

/// In what a layout differs from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// There was none before.
    First,
    /// A person went on with who was left, and so many partitions were to be salvaged.
    Recovered {
        salvaged: u32,
    },
    /// Data began to move.
    Begun,
    /// The data had moved, or was salvaged.
    Finished,
    /// Data went back to where it was.
    Aborted,
    Admitted(u32),
    /// Members have another name, zone or weight.
    Altered(u32),
    Lost(u32),
    Dismissed(u32),
    Voters,
    Keyspaces(u32),
}

/// What has changed, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    pub differences: Vec<Difference>,
    /// Of how many partitions other nodes are to hold the data than before.
    pub partitions_moved: u32,
}

/// A layout that a node has taken up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub is_joint: bool,
    /// When that was, by the wall clock, in milliseconds since the Unix epoch; `None` if it was before the history began.
    pub taken_up_ms: Option<u64>,
    /// Against the layout that the node had before; `None` if it does not know that one any more.
    pub changes: Option<Changes>,
    pub members: u32,
    pub voters: u32,
}

/// The last layouts, the newest at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    entries: VecDeque<Entry>,
}

impl History {
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Notes a layout, unless it or a later one is noted already; true if that is news.
    pub fn note(&mut self, entry: Entry) -> bool {
        let order = |entry: &Entry| (entry.incarnation.number, entry.epoch);
        if self.entries.back().is_some_and(|last| order(last) >= order(&entry)) {
            return false;
        }
        self.entries.push_back(entry);
        if self.entries.len() > ENTRIES_MAX {
            self.entries.pop_front();
        }
        true
    }
}

impl FromIterator<Entry> for History {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        let mut history = Self::default();
        for entry in entries {
            history.note(entry);
        }
        history
    }
}

impl Entry {
    pub fn new(layout: &Layout, changes: Option<Changes>, taken_up_ms: Option<u64>) -> Self {
        Self {
            incarnation: layout.incarnation,
            epoch: layout.epoch,
            is_joint: layout.is_joint(),
            taken_up_ms,
            changes,
            members: count(layout.members.len()),
            voters: count(layout.voters.len()),
        }
    }
}

impl Changes {
    pub fn of_first() -> Self {
        Self { differences: vec![Difference::First], partitions_moved: 0 }
    }

    /// From one layout to another one of the same cluster; there may be others between the two.
    pub fn between(before: &Layout, after: &Layout) -> Self {
        let moved =
            |partition: &Partition| nodes(before.ring(), *partition) != nodes(after.ring(), *partition);
        Self {
            differences: differences(before, after),
            partitions_moved: count(after.partitions.all().filter(moved).count()),
        }
    }
}

fn nodes(ring: &Ring, partition: Partition) -> BTreeSet<NodeId> {
    ring.replicas(partition).iter().map(|replica| replica.node).collect()
}

fn differences(before: &Layout, after: &Layout) -> Vec<Difference> {
    let mut found = if before.incarnation == after.incarnation {
        moves(before, after)
    } else {
        vec![Difference::Recovered { salvaged: count(after.salvaged.len()) }]
    };
    let kept = || before.members.iter().filter_map(|member| Some((member, after.member(member.node)?)));
    let is_new = |node| before.member(node).is_none();
    let admitted = after.members.iter().filter(|member| is_new(member.node)).count();
    let altered =
        kept().filter(|(old, new)| (&old.name, &old.zone, old.weight) != (&new.name, &new.zone, new.weight));
    let lost = kept().filter(|(old, new)| new.is_lost && !old.is_lost);
    let dismissed = before.members.len() - kept().count();
    let added = after.keyspaces.keys().filter(|name| !before.keyspaces.contains_key(*name));
    let counted = [
        (admitted, Difference::Admitted as fn(u32) -> Difference),
        (altered.count(), Difference::Altered),
        (lost.count(), Difference::Lost),
        (dismissed, Difference::Dismissed),
        (added.count(), Difference::Keyspaces),
    ];
    let there = counted.into_iter().filter(|(n, _)| *n > 0);
    found.extend(there.map(|(n, difference)| difference(count(n))));
    if before.voters != after.voters {
        found.push(Difference::Voters);
    }
    found
}

/// What became of the rings.
fn moves(before: &Layout, after: &Layout) -> Vec<Difference> {
    if before.phase == after.phase && before.salvaged == after.salvaged {
        return Vec::new();
    }
    match (&before.phase, &after.phase) {
        (Phase::Stable(a), Phase::Stable(b)) if a == b => vec![Difference::Finished],
        (Phase::Stable(_), Phase::Joint { .. }) => vec![Difference::Begun],
        // After a recovery both rings may be the same.
        (Phase::Joint { to, .. }, Phase::Stable(b)) if to == b && after.salvaged.is_empty() => {
            vec![Difference::Finished]
        }
        (Phase::Joint { from, .. }, Phase::Stable(a)) if from == a => vec![Difference::Aborted],
        // Over layouts that this node has not seen.
        (Phase::Joint { from, .. }, Phase::Joint { from: again, .. }) if from == again => {
            vec![Difference::Aborted, Difference::Begun]
        }
        (Phase::Joint { .. }, Phase::Stable(_)) => vec![Difference::Finished],
        (Phase::Stable(_), Phase::Stable(_)) => vec![Difference::Begun, Difference::Finished],
        (Phase::Joint { .. }, Phase::Joint { .. }) => vec![Difference::Finished, Difference::Begun],
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::{first, member};
    use crate::layout::{KeyspaceMode, Member};
    use crate::recovery::Losses;
    use crate::succession::Change;

    fn entry(epoch: u64) -> Entry {
        let layout = Layout { epoch: Epoch(epoch), ..first(vec![member(1)], 1).unwrap() };
        Entry::new(&layout, None, Some(epoch))
    }

    #[test]
    fn each_change_is_told_from_two_layouts() {
        let start = first((1..=3).map(member).collect(), 3).unwrap();
        let to = |numbers: [u8; 3]| Change::Move {
            members: numbers.into_iter().map(member).collect(),
            replication_factor: 3,
        };
        let node = |n: u8| BTreeSet::from([NodeId([n; 16])]);
        let idle = Member { weight: 0, ..member(1) };
        let steps = [
            (Change::Admit(vec![member(4)]), vec![Difference::Admitted(1)], 0),
            (to([2, 3, 4]), vec![Difference::Begun], 16),
            (Change::Abort, vec![Difference::Aborted], 16),
            (to([2, 3, 4]), vec![Difference::Begun], 16),
            (Change::Finish, vec![Difference::Finished, Difference::Voters], 0),
            (Change::Admit(vec![idle]), vec![Difference::Altered(1)], 0),
            (Change::Dismiss(node(1)), vec![Difference::Dismissed(1)], 0),
            (
                Change::Keyspaces([("a".to_owned(), KeyspaceMode::Lww)].into()),
                vec![Difference::Keyspaces(1)],
                0,
            ),
            (Change::Lose(node(2)), vec![Difference::Lost(1), Difference::Voters], 0),
        ];
        let mut now = start.clone();
        for (change, differences, partitions_moved) in steps {
            let next = now.next(&change).unwrap();
            assert_eq!(
                Changes::between(&now, &next),
                Changes { differences, partitions_moved },
                "{change:?}"
            );
            now = next;
        }
        let found = Changes::between(&start, &now).differences;
        assert_eq!(found[..2], [Difference::Begun, Difference::Finished], "over all that was missed");
        let losses = Losses { nodes: [NodeId([1; 16]), NodeId([2; 16])].into(), ..Losses::default() };
        let recovered = start.recovered(Incarnation { number: 2, id: 7 }, &losses).unwrap();
        let found = Changes::between(&start, &recovered).differences;
        assert_eq!(found[..2], [Difference::Recovered { salvaged: 16 }, Difference::Lost(2)]);
    }

    #[test]
    fn a_finish_is_no_abort_where_a_recovery_has_left_one_ring_of_two() {
        let start = first((1..=3).map(member).collect(), 3).unwrap();
        let to = |numbers: [u8; 3]| Change::Move {
            members: numbers.into_iter().map(member).collect(),
            replication_factor: 3,
        };
        let ready = start.next(&Change::Admit(vec![member(4)])).unwrap();
        let moving = ready.next(&to([2, 3, 4])).unwrap();
        let losses = Losses { nodes: [NodeId([2; 16]), NodeId([3; 16])].into(), ..Losses::default() };
        let recovered = moving.recovered(Incarnation { number: 2, id: 7 }, &losses).unwrap();
        let finished = recovered.next(&Change::Finish).unwrap();
        assert_eq!(moves(&recovered, &finished), [Difference::Finished]);
        let again = ready.next(&to([1, 3, 4])).unwrap();
        assert_eq!(moves(&moving, &again), [Difference::Aborted, Difference::Begun]);
    }

    #[test]
    fn the_last_layouts_are_kept_each_once_and_in_order() {
        let mut history: History = (1..=70).map(entry).collect();
        assert!(!history.note(entry(70)) && !history.note(entry(3)));
        let epochs: Vec<u64> = history.entries().map(|entry| entry.epoch.0).collect();
        assert_eq!(epochs, (7..=70).collect::<Vec<_>>());
        let later = Entry { incarnation: Incarnation { number: 2, id: 9 }, ..entry(5) };
        assert!(history.note(later), "a later incarnation");
    }
}
