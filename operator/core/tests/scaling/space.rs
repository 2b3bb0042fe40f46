//! Whether data fits onto the nodes that stay.

use std::collections::BTreeSet;

use keystore_core::layout::{Layout, Member};
use keystore_core::succession::Change;
use keystore_operator_core::hold::HoldReason;
use keystore_operator_core::observed::{Answer, Disk, Observed};
use keystore_operator_core::plan::Plan;

use crate::fixtures::{node, plan_at, plan_of};
use crate::looks::{away, layout_of, next, replacing, seen, wanting};

#[test]
fn data_that_does_not_fit_onto_fewer_nodes_stays_where_it_is() {
    let five = layout_of(5, 5);
    let with_set_aside = |total: u64, available: u64, set_aside_bytes: u64| {
        let mut observed = seen(&five, 5);
        for answer in observed.answers.values_mut() {
            let Answer::Here(answer) = answer else { continue };
            answer.disk = Some(Disk {
                total_bytes: total,
                available_bytes: available,
                set_aside_bytes,
                is_full: false,
            });
        }
        plan_of(&wanting(3), &observed)
    };
    let with = |total: u64, available: u64| with_set_aside(total, available, 0);
    let gib = 1 << 30;
    let plan = with(gib, gib * 4 / 10);
    assert_eq!(next(&plan), "rest, held for InsufficientSpace, 5 pods");
    assert_eq!(
        plan.hold.unwrap().message,
        "spec.replicas is 3, and the data of 5 nodes does not fit onto 3: demo-0 would hold about 1.1 GiB, and of its volume (1.0 GiB) 90 % may be used, so about 110 MiB are missing there; nothing is moved: set spec.replicas higher"
    );
    assert_eq!(next(&with(gib, gib / 2)), "Moving, to epoch 5 of 5, 5 pods");
    assert_eq!(
        next(&with_set_aside(gib, gib * 4 / 10, gib / 10)),
        "Moving, to epoch 5 of 5, 5 pods",
        "what is set aside goes when it is in the way"
    );
    assert_eq!(
        next(&with(100 * gib, gib)),
        "Moving, to epoch 5 of 5, 5 pods",
        "a file system shared with others"
    );
    let reason = HoldReason::InsufficientSpace;
    assert_eq!(reason.as_str(), "InsufficientSpace");
}

/// So much of each volume, in tenths of a GiB, and how much of that is in use; `None`: it does not say.
fn with_disks<const N: usize>(layout: &Layout, disks: [Option<(u64, u64)>; N]) -> Observed {
    let mut observed = seen(layout, N as u32);
    let tenth = (1 << 30) / 10;
    for (ordinal, disk) in (0..).zip(disks) {
        let Some(Answer::Here(answer)) = observed.answers.get_mut(&ordinal) else { continue };
        answer.disk = disk.map(|(total, used)| Disk {
            total_bytes: total * tenth,
            available_bytes: (total - used) * tenth,
            set_aside_bytes: 0,
            is_full: false,
        });
    }
    observed
}

#[test]
fn whether_data_fits_is_judged_by_all_who_hold_it_and_by_the_smallest_who_stays() {
    let five = layout_of(5, 5);
    let members = five.members.iter().take(3).cloned().collect();
    let leaving = five.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let lost = five.next(&Change::Lose(BTreeSet::from([node(4)]))).unwrap();
    let same = |used: u64| [Some((10, used)); 5];
    let with = |used: u64, ordinal: usize, disk: Option<(u64, u64)>| {
        let mut disks = same(used);
        disks[ordinal] = disk;
        disks
    };
    let (fits, held) = ("Moving, to epoch 5 of 5, 5 pods", "rest, held for InsufficientSpace, 5 pods");
    for (what, replicas, layout, disks, expected) in [
        ("it fits", 3, &five, same(5), fits),
        ("it does not", 3, &five, same(6), held),
        ("as many nodes as before", 5, &five, same(10), "rest, 5 pods"),
        (
            "once data moves that was asked before",
            3,
            &leaving,
            same(10),
            "Finishing, to epoch 6 of 5, 5 pods",
        ),
        ("one that stays is small", 3, &five, with(5, 1, Some((5, 5))), held),
        ("one that goes is small", 3, &five, with(4, 4, Some((5, 5))), fits),
        ("one that goes is large", 3, &five, with(5, 4, Some((20, 5))), fits),
        ("one does not say, and may be full", 3, &five, with(5, 4, None), held),
        ("it would fit even so", 3, &five, with(4, 4, None), fits),
        ("nor does it matter whether it stays", 3, &five, with(4, 1, None), fits),
        ("one shares its file system, and counts as the others", 3, &five, with(6, 4, Some((30, 1))), held),
        ("nobody says anything", 3, &five, [None; 5], fits),
    ] {
        assert_eq!(next(&plan_of(&wanting(replicas), &with_disks(layout, disks))), expected, "{what}");
    }
    let mut silent = with_disks(&five, same(6));
    silent.answers.insert(4, Answer::Unreachable);
    let plan = plan_of(&wanting(3), &silent);
    assert_eq!(next(&plan), held, "an answer that does not come begins nothing");
    let message = plan.hold.unwrap().message;
    assert!(message.contains("(demo-4 does not say how much it holds, and counts as full); "), "{message}");
    let lost_at = |used: u64| {
        let mut observed = with_disks(&lost, same(used));
        observed.answers.insert(4, Answer::Unreachable);
        next(&plan_of(&wanting(3), &observed))
    };
    assert_eq!(lost_at(6), "StartingPods, held for InsufficientSpace, 5 pods", "what it held is made anew");
    assert_eq!(lost_at(5), "Moving, to epoch 6 of 5, 5 pods", "and is no more than the others hold");
}

/// As `layout_of`, with these zones, by which nothing is arranged yet.
fn in_zones(holders: u32, zones: &[&str]) -> Layout {
    let layout = layout_of(holders, zones.len() as u32);
    let members = layout.members.iter().zip(zones);
    let members = members.map(|(member, zone)| Member { zone: (*zone).to_owned(), ..member.clone() });
    layout.next(&Change::Admit(members.collect())).unwrap()
}

#[test]
fn a_zone_with_few_nodes_holds_a_copy_of_everything_on_them() {
    let held = |plan: &Plan| plan.hold.as_ref().map(|hold| hold.message.clone());
    let six = in_zones(6, &["a", "b", "c", "a", "b", "c"]);
    let shrunk = |used: u64| held(&plan_of(&wanting(4), &with_disks(&six, [Some((10, used)); 6])));
    assert_eq!(shrunk(4), None);
    let message = shrunk(5).unwrap();
    assert!(message.contains("does not fit onto 4: demo-1 would hold about 1.0 GiB, "), "{message}");
    assert!(message.ends_with("set spec.replicas higher"), "{message}");

    let five = in_zones(4, &["a", "a", "b", "b", "c"]);
    let grown = |used: u64| {
        let mut disks = [Some((10, used)); 5];
        disks[4] = Some((10, 0));
        held(&plan_of(&wanting(5), &with_disks(&five, disks)))
    };
    assert_eq!(grown(6), None);
    let message = grown(7).unwrap();
    assert!(message.contains("does not fit onto 5: demo-4 would hold about 960 MiB, "), "{message}");
    assert!(message.ends_with("set spec.replicas to 4 again, or higher"), "{message}");
    let full = in_zones(4, &["a", "b", "c", "d", "e"]);
    let full =
        with_disks(&full, [Some((10, 10)), Some((10, 10)), Some((10, 10)), Some((10, 10)), Some((10, 0))]);
    assert_eq!(held(&plan_of(&wanting(5), &full)), None, "full nodes need not wait for what makes room");
}

/// It holds what the lost one held, and no more.
#[test]
fn who_takes_the_place_of_a_lost_node_need_not_have_room_to_spare() {
    let lost = layout_of(3, 3).next(&Change::Lose([node(1)].into())).unwrap();
    let successor = layout_of(3, 4).members.split_off(3);
    let joined = lost.next(&Change::Admit(successor)).unwrap();
    let full = Some((10, 10));
    let observed = away(with_disks(&joined, [full, None, full, Some((10, 0))]), 1);
    let resource = replacing(3, &observed, 0);
    assert_eq!(next(&plan_at(&resource, &observed, 30)), "Moving, to epoch 4 of 4, 4 pods");
}
