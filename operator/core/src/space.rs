//! Whether the data fits to where it is to move.
//!
//! Counts what is in use on the disks of all that hold data, shared out as the partitions will be: a zone may have to hold
//! a copy of everything on fewer nodes than another. A little too much, since each node's own log is in it. A file system
//! that is much larger than the volume that was asked for is shared with others, and says nothing about this store.
//!
//! A node that does not say how much it holds counts as full: an answer that does not come in time must not begin what was
//! held, and what fits even so need not wait for a node that may be dead. What a lost node held is made anew from the
//! others, and counts as much as theirs. A node that is to hold no more than before is in nobody's way.

use std::collections::BTreeSet;

use keystore_core::id::NodeId;
use keystore_core::layout::Member;
use keystore_core::partition::Partition;

use crate::aim::plan_move;
use crate::differ::bytes;
use crate::hold::{Hold, HoldReason};
use crate::members::{Roster, owners};
use crate::observed::Disk;
use crate::validate::ValidCluster;

/// Above this share of a disk nodes begin to warn.
const FULL_PERCENT: u128 = 90;

/// Why the data does not fit onto the nodes of these pods; `None` if it does, or if that cannot be known. As long as some
/// of them are to be members first, it counts as spread evenly.
pub(crate) fn find_lack_of_space(
    valid: &ValidCluster,
    roster: &Roster<'_>,
    wanted: &BTreeSet<u32>,
) -> Option<Hold> {
    let layout = roster.layout;
    let asked = bytes(&valid.spec.storage.size)?;
    // File systems are a little smaller than their volumes, and volumes are rounded up.
    let is_shared = |disk: &Disk| disk.total_bytes / 2 > asked;
    let told = |node| roster.answer_of(node)?.disk.filter(|disk| disk.total_bytes > 0);
    let disk = |node| told(node).filter(|disk| !is_shared(disk));
    let holders = owners(layout.source_ring());
    // What a node keeps of one that it is not any more is not to be moved, and goes when it is in the way.
    let free = |disk: Disk| disk.available_bytes.saturating_add(disk.set_aside_bytes);
    let used = |disk: Disk| u128::from(disk.total_bytes.saturating_sub(free(disk)));
    let known: Vec<Disk> = holders.iter().filter_map(|node| disk(*node)).collect();
    let full = known.iter().map(|disk| u128::from(disk.total_bytes)).max()?;
    let known_used: u128 = known.iter().copied().map(used).sum();
    let mean = known_used.div_ceil(known.len() as u128);
    let silent: BTreeSet<NodeId> =
        holders.iter().copied().filter(|node| told(*node).is_none() && !layout.is_lost(*node)).collect();
    let others = (holders.len() - known.len() - silent.len()) as u128;
    let all_used = known_used + full * silent.len() as u128 + mean * others;

    let staying: Vec<Member> = wanted.iter().filter_map(|ordinal| roster.live(*ordinal)).cloned().collect();
    let moved = (staying.len() == wanted.len())
        .then(|| layout.next(&plan_move(layout, staying.clone())).ok())
        .flatten();
    let share = |node: NodeId| match &moved {
        None => Some(all_used.div_ceil(wanted.len().max(1) as u128)),
        Some(moved) => {
            let (before, then) = (layout.source_ring().owned(node), moved.ring().owned(node));
            let all: usize = owners(moved.ring()).into_iter().map(|node| moved.ring().owned(node)).sum();
            (then > before).then(|| (all_used * then as u128).div_ceil(all.max(1) as u128))
        }
    };
    let lack = |member: &Member| {
        let (share, total) = (share(member.node)?, u128::from(disk(member.node)?.total_bytes));
        let missing = share.checked_sub(total * FULL_PERCENT / 100).filter(|missing| *missing > 0)?;
        Some((missing, share, total, roster.pods(roster.ordinals([member.node]))))
    };
    // Of those with the same lack, the first.
    let (missing, share, total, pod) =
        staying.iter().filter_map(lack).reduce(|most, lack| if lack.0 > most.0 { lack } else { most })?;
    let message = format!(
        "spec.replicas is {}, and the data of {} nodes does not fit onto {}: {pod} would hold about {}, and of its volume \
         ({}) {FULL_PERCENT} % may be used, so about {} are missing there{}; nothing is moved: set spec.replicas {}",
        valid.replicas,
        holders.len(),
        wanted.len(),
        rough(share),
        rough(total),
        rough(missing),
        counted_as_full(roster, silent),
        // On the way up its zone has too few nodes.
        if wanted.len() < holders.len() {
            "higher".to_owned()
        } else {
            format!("to {} again, or higher", holders.len())
        },
    );
    Some(Hold { reason: HoldReason::InsufficientSpace, message })
}

/// Why data that moves does not arrive; `None` unless that is for lack of space.
pub(crate) fn find_full_volume(roster: &Roster<'_>) -> Option<Hold> {
    let layout = roster.layout;
    let is_full = |node: &NodeId| {
        roster.answer_of(*node).is_some_and(|answer| {
            let is_open = answer.transfer.partitions_done < answer.transfer.partitions;
            let is_gained = |partition: Partition| {
                layout.ring().is_replica(partition, *node)
                    && (!layout.source_ring().is_replica(partition, *node)
                        || layout.salvaged.contains_key(&partition))
            };
            let gains = layout.partitions.all().any(is_gained);
            is_open && gains && answer.disk.is_some_and(|disk| disk.is_full)
        })
    };
    let full: Vec<_> = owners(layout.ring()).into_iter().filter(is_full).collect();
    let pods = roster.pods(roster.ordinals(full));
    let (before, then) = (owners(layout.source_ring()).len(), owners(layout.ring()).len());
    let back = match layout.is_joint() && before != then {
        true => format!(", or set spec.replicas back to {before}"),
        false => String::new(),
    };
    let message = format!(
        "no more data moves to {pods}, for the volume is full: expand its claim, where the storage class can{back}"
    );
    (!pods.is_empty()).then_some(Hold { reason: HoldReason::InsufficientSpace, message })
}

fn counted_as_full(roster: &Roster<'_>, silent: BTreeSet<NodeId>) -> String {
    if silent.is_empty() {
        return String::new();
    }
    format!(" ({} does not say how much it holds, and counts as full)", roster.pods(roster.ordinals(silent)))
}

/// With two digits, so that the sentence stays while the data hardly changes.
fn rough(bytes: u128) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut tenths = bytes * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = tenths.div_ceil(1_024);
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 {
        return format!("{}.{} {name}", tenths / 10, tenths % 10);
    }
    let mut step = 10;
    while tenths / step >= 100 {
        step *= 10;
    }
    format!("{} {name}", tenths.div_ceil(step) * step / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        for (bytes, expected) in [
            (5, "5.0 B"),
            (1_023, "1100 B"),
            (1_536, "1.5 KiB"),
            (300 << 20, "300 MiB"),
            (347 << 20, "350 MiB"),
            (15 << 29, "7.5 GiB"),
        ] {
            assert_eq!(rough(bytes), expected);
        }
    }
}
