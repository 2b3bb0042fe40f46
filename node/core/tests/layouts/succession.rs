//! Which layouts may follow which: every refusal has a case, and whatever changes come one after the other, neighbours
//! share a replica of each quorum.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::{Actor, ClusterId, Epoch, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, LayoutError, Member, Phase, first_voters};
use keystore_core::partition::{Partition, PartitionCount};
use keystore_core::quorum::Consistency;
use keystore_core::recovery::Losses;
use keystore_core::ring::{Replica, Ring, RingError};
use keystore_core::succession::{
    Change, Evidence, GateError, Standing, Step, SuccessionError, check_gate, check_step,
};
use proptest::prelude::*;

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn nodes(numbers: &[u8]) -> BTreeSet<NodeId> {
    numbers.iter().copied().map(node).collect()
}

fn member(n: u8) -> Member {
    let (actor, name, zone) = (Actor(n.into()), format!("demo-{n}"), format!("zone-{}", n % 3));
    Member { node: node(n), actor, name, zone, weight: 1, is_lost: false }
}

fn members(numbers: &[u8]) -> Vec<Member> {
    numbers.iter().copied().map(member).collect()
}

fn first(numbers: &[u8], replication_factor: usize) -> Layout {
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 5 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor,
        members: members(numbers),
        keyspaces: BTreeMap::new(),
    })
    .unwrap()
}

fn to(numbers: &[u8], replication_factor: usize) -> Change {
    Change::Move { members: members(numbers), replication_factor }
}

pub(crate) fn keyspace(name: &str, mode: KeyspaceMode) -> Change {
    Change::Keyspaces([(name.to_owned(), mode)].into())
}

/// Nodes 1 to 3 hold everything, and it is to move to 2 to 4.
fn joint() -> Layout {
    first(&[1, 2, 3], 3).next(&Change::Admit(members(&[4]))).unwrap().next(&to(&[2, 3, 4], 3)).unwrap()
}

#[test]
pub(crate) fn a_change_that_cannot_be_is_refused() {
    let stable = first(&[1, 2, 3], 3);
    let spare = stable.next(&Change::Admit(members(&[4]))).unwrap();
    let other_mode = keyspace("default", KeyspaceMode::Siblings);
    let no_member = RingError::NoMember { partition: Partition(0), node: node(1) };
    let cases = [
        (&joint(), to(&[1, 2, 3], 3), SuccessionError::IsMoving),
        (&stable, Change::Finish, SuccessionError::IsNotMoving),
        (&stable, Change::Abort, SuccessionError::IsNotMoving),
        (&stable, Change::Lose(nodes(&[7])), SuccessionError::NoMember(node(7))),
        (&stable, Change::Dismiss(nodes(&[7])), SuccessionError::NoMember(node(7))),
        (&spare, Change::Dismiss(nodes(&[1])), LayoutError::Ring(no_member).into()),
        (&stable, Change::Voters, SuccessionError::Nothing),
        (&stable, to(&[1, 2, 3], 3), SuccessionError::Nothing),
        (&stable, Change::Admit(members(&[3])), SuccessionError::Nothing),
        (&stable, to(&[1, 2, 3], 4), LayoutError::ReplicationFactor(4).into()),
        (&stable, Change::Lose(nodes(&[1, 2, 3])), LayoutError::Voters(0).into()),
        (&stable, other_mode, LayoutError::NoDefaultKeyspace.into()),
    ];
    for (now, change, error) in cases {
        assert_eq!(now.next(&change), Err(error), "{change:?}");
    }
    let other = Change::Admit(vec![Member { actor: Actor(77), ..member(4) }]);
    assert_eq!(spare.next(&other), Err(SuccessionError::Changed(node(4))));
    let back = spare.next(&Change::Lose(nodes(&[4]))).unwrap().next(&Change::Admit(members(&[4])));
    assert_eq!(back, Err(SuccessionError::Changed(node(4))));
    let left = spare.next(&Change::Dismiss(nodes(&[4]))).unwrap();
    assert_eq!(
        left.next(&Change::Admit(members(&[4]))),
        Err(LayoutError::Departed(node(4)).into()),
        "a departed node never returns"
    );
}

#[test]
fn data_is_given_to_nobody_who_is_to_go_or_was_not_admitted_before() {
    let spare = first(&[1, 2, 3], 3).next(&Change::Admit(members(&[4]))).unwrap();
    let idle = |number: u8| Change::Admit(vec![Member { weight: 0, ..member(number) }]);
    let closed = spare.next(&idle(4)).unwrap();
    assert_eq!(check_step(&spare, &closed), Ok(Step::Same));
    let not_admitted = |number: u8| SuccessionError::NotAdmitted(node(number));
    for (now, change, error) in [
        (&closed, to(&[2, 3, 4], 3), not_admitted(4)),
        (&spare, to(&[2, 3, 5], 3), not_admitted(5)),
        (&spare, idle(1), LayoutError::NoWeight(node(1)).into()),
    ] {
        assert_eq!(now.next(&change), Err(error), "{change:?}");
    }
    // What was voted for before comes too late, also under the epoch that is its turn.
    let begun = spare.next(&to(&[2, 3, 4], 3)).unwrap();
    assert_eq!(check_step(&spare, &begun), Ok(Step::Begin));
    let mut late = closed.next(&Change::Admit(members(&[4]))).unwrap();
    let to_late = with_since(begun.ring(), node(4), late.epoch);
    late.phase = Phase::Joint { from: spare.ring().clone(), to: to_late };
    late.phase_since = late.epoch;
    assert_eq!(check_step(&closed, &late), Err(not_admitted(4)));
    let back = closed.next(&Change::Admit(members(&[4]))).unwrap();
    assert!(back.next(&to(&[2, 3, 4], 3)).unwrap().is_joint());
    assert_eq!(closed.next(&Change::Dismiss(nodes(&[4]))).unwrap().members.len(), 3);
}

#[test]
pub(crate) fn nobody_who_is_lost_is_given_data() {
    let lost = first(&[1, 2, 3, 4], 3).next(&Change::Lose(nodes(&[4]))).unwrap();
    let wanted = |numbers: &[u8]| Change::Move {
        members: numbers.iter().map(|number| lost.member(node(*number)).unwrap().clone()).collect(),
        replication_factor: 3,
    };
    assert_eq!(lost.next(&wanted(&[1, 2, 3, 4])), Err(SuccessionError::IsLost(node(4))));
    let moving = lost.next(&wanted(&[1, 2, 3])).unwrap();
    assert_eq!(moving.ring().owned(node(4)), 0);
    // Nor does a vote for it count that was given before.
    let Phase::Joint { from, .. } = moving.phase.clone() else { panic!("nothing moves") };
    let spoilt = Layout { phase: Phase::Joint { from: from.clone(), to: from }, ..moving };
    assert_eq!(check_step(&lost, &spoilt), Err(SuccessionError::IsLost(node(4))));
}

#[test]
pub(crate) fn whoever_may_alone_have_what_is_salvaged_stays_a_member() {
    let apart = first(&[1, 2, 3], 3).next(&Change::Admit(members(&[4, 5, 6]))).unwrap();
    let moving = apart.next(&to(&[4, 5, 6], 3)).unwrap();
    let all: BTreeSet<_> = (0..16).map(Partition).collect();
    let losses = Losses { nodes: nodes(&[]), doubted: [(node(1), all.clone()), (node(2), all)].into() };
    let recovered = moving.recovered(Incarnation { number: 2, id: 6 }, &losses).unwrap();
    let sources: BTreeSet<_> = recovered.salvaged.values().flatten().copied().collect();
    let is_outside = |source: &NodeId| recovered.owned(*source) == 0;
    let outside = sources.iter().copied().find(is_outside).expect("a source that holds nothing by the ring");
    for source in sources {
        let lost = recovered.next(&Change::Lose([source].into()));
        assert_eq!(lost, Err(SuccessionError::IsSource(source)));
    }
    let dismissed = recovered.next(&Change::Dismiss([outside].into()));
    assert!(matches!(dismissed, Err(SuccessionError::Layout(LayoutError::Salvaged(_)))), "{dismissed:?}");
    let finished = recovered.next(&Change::Finish).unwrap();
    assert!(finished.next(&Change::Lose([outside].into())).is_ok());
    let dismissed = finished.next(&Change::Dismiss([outside].into())).unwrap();
    let at_once = Layout { epoch: finished.epoch, phase_since: finished.epoch, ..dismissed };
    assert_eq!(check_step(&recovered, &at_once), Err(SuccessionError::LeftOut(outside)));
}

/// A ring as it would be had one replica another epoch.
fn with_since(ring: &Ring, of: NodeId, since: Epoch) -> Ring {
    let replica = |replica: &Replica| match *replica {
        Replica { node, .. } if node == of => Replica { node, since },
        other => other,
    };
    Ring::new(ring.iter().map(|(_, replicas)| replicas.iter().map(replica).collect()).collect())
}

#[test]
pub(crate) fn a_layout_that_cannot_follow_is_refused() {
    let now = first(&[1, 2, 3], 3)
        .next(&Change::Admit(members(&[4, 5])))
        .and_then(|layout| layout.next(&Change::Dismiss(nodes(&[5]))))
        .and_then(|layout| layout.next(&keyspace("carts", KeyspaceMode::Siblings)))
        .unwrap();
    let next = now.next(&to(&[2, 3, 4], 3)).unwrap();
    assert_eq!(check_step(&now, &next), Ok(Step::Begin));
    let check = |spoil: &dyn Fn(&mut Layout), error: SuccessionError| {
        let mut spoilt = next.clone();
        spoil(&mut spoilt);
        assert_eq!(check_step(&now, &spoilt), Err(error));
    };
    let expected = next.epoch;
    check(
        &|layout| layout.epoch = Epoch(expected.0 + 1),
        SuccessionError::Epoch { expected, found: Epoch(expected.0 + 1) },
    );
    check(&|layout| layout.cluster = ClusterId([8; 16]), SuccessionError::OtherCluster);
    check(&|layout| layout.incarnation.id = 6, SuccessionError::OtherCluster);
    check(&|layout| layout.recovered_from = Some(now.term()), SuccessionError::OtherCluster);
    check(&|layout| layout.phase_since = Epoch(1), SuccessionError::PhaseSince { expected, found: Epoch(1) });
    check(
        &|layout| {
            layout.keyspaces.remove("carts");
        },
        SuccessionError::Keyspace("carts".to_owned()),
    );
    check(
        &|layout| {
            layout.keyspaces.insert("carts".to_owned(), KeyspaceMode::Lww);
        },
        SuccessionError::Keyspace("carts".to_owned()),
    );
    check(
        &|layout| {
            layout.departed.remove(&node(5));
        },
        SuccessionError::Forgotten(node(5)),
    );
    check(&|layout| layout.members[0].actor = Actor(99), SuccessionError::Changed(node(1)));
    check(&|layout| layout.voters.truncate(1), SuccessionError::Voters { expected: 3, found: 1 });
    for (voters, error) in [
        ([2, 3, 9], LayoutError::Voter(node(9))),
        ([2, 2, 3], LayoutError::VoterOrder),
        ([3, 2, 4], LayoutError::VoterOrder),
    ] {
        check(&|layout| layout.voters = voters.map(node).to_vec(), error.into());
    }
    assert!(next.is_voter(node(2)));
    check(&|layout| layout.members[1].is_lost = true, LayoutError::Voter(node(2)).into());
    check(&|layout| layout.phase = Phase::Stable(next.ring().clone()), SuccessionError::Rings);
    let elsewhere = Phase::Joint { from: next.ring().clone(), to: next.ring().clone() };
    check(&|layout| layout.phase = elsewhere.clone(), SuccessionError::Rings);
    check(&|layout| layout.salvaged = [(Partition(0), nodes(&[2]))].into(), SuccessionError::Rings);
    for (of, since) in [(4, 1), (4, expected.0 + 1), (2, expected.0)] {
        let to = with_since(next.ring(), node(of), Epoch(since));
        let phase = Phase::Joint { from: now.ring().clone(), to };
        check(&|layout| layout.phase = phase.clone(), SuccessionError::Since);
    }
    // Another number of replicas is another ring.
    let more = Layout { replication_factor: 4, ..now.next(&keyspace("lists", KeyspaceMode::Lww)).unwrap() };
    assert_eq!(check_step(&now, &more), Err(SuccessionError::Rings));
    // More of them are no safer: those without data may leave at any time.
    let wide = first(&[1, 2, 3], 3).next(&Change::Admit(members(&[4, 5]))).unwrap();
    let voters = (1..=5).map(node).collect();
    let many = Layout { voters, ..wide.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap() };
    assert_eq!(check_step(&wide, &many), Err(SuccessionError::Voters { expected: 3, found: 5 }));
    // A member without data that is left out has to be noted.
    let mut forgotten = now.next(&Change::Dismiss(nodes(&[4]))).unwrap();
    forgotten.departed.remove(&node(4));
    assert_eq!(check_step(&now, &forgotten), Err(SuccessionError::LeftOut(node(4))));
    // Whoever leaves is read from until the move has ended everywhere.
    let mut early = next.next(&Change::Finish).unwrap();
    early.members.remove(0);
    early.departed.insert(node(1));
    early.voters = vec![node(2)];
    assert_eq!(check_step(&next, &early), Err(SuccessionError::LeftOut(node(1))));
    // The rings of a move stay until it ends, and it ends in one of the two.
    let (a, b) = (next.source_ring().clone(), next.ring().clone());
    let phases = [
        (Phase::Joint { from: b.clone(), to: a.clone() }, SuccessionError::IsMoving),
        (Phase::Stable(with_since(&b, node(4), Epoch(1))), SuccessionError::Rings),
        (Phase::Stable(with_since(&a, node(1), expected)), SuccessionError::Rings),
    ];
    for (phase, error) in phases {
        let spoilt = Layout { phase, ..next.next(&Change::Finish).unwrap() };
        assert_eq!(check_step(&next, &spoilt), Err(error));
    }
}

/// Members in doubt of a few partitions: what is left of those is salvaged, before data moved or while it does.
fn salvaging(before: &Layout) -> Layout {
    let doubted = [1, 2].map(|n| (node(n), [0, 1].map(Partition).into()));
    let losses = Losses { nodes: nodes(&[]), doubted: doubted.into() };
    before.recovered(Incarnation { number: 2, id: 6 }, &losses).unwrap()
}

#[test]
fn what_is_salvaged_is_so_until_that_is_finished() {
    let (stable, moving) = (salvaging(&first(&[1, 2, 3], 3)), salvaging(&joint()));
    assert_ne!(moving.source_ring(), moving.ring());
    let finished = stable.next(&Change::Finish).unwrap();
    let (moved, back) = (moving.next(&Change::Finish).unwrap(), moving.next(&Change::Abort).unwrap());
    assert_eq!(check_step(&stable, &finished), Ok(Step::Finish));
    assert_eq!(check_step(&moving, &moved), Ok(Step::Finish));
    assert_eq!(check_step(&moving, &back), Ok(Step::Abort));
    let mut one_left = stable.salvaged.clone();
    one_left.pop_first();
    let begun = Phase::Joint { from: stable.ring().clone(), to: stable.ring().clone() };
    let begun = Layout { phase: begun, salvaged: stable.salvaged.clone(), ..finished.clone() };
    for (now, next, error) in [
        (&stable, Layout { salvaged: one_left, ..finished }, SuccessionError::Rings),
        (&moving, Layout { salvaged: moving.salvaged.clone(), ..moved }, SuccessionError::Rings),
        (&moving, Layout { salvaged: BTreeMap::new(), ..back }, SuccessionError::Rings),
        (&stable, begun, SuccessionError::IsSalvaging),
    ] {
        assert_eq!(check_step(now, &next), Err(error), "{next:?}");
    }
}

#[test]
fn each_member_holds_its_share_by_weight() {
    let weighted = |weights: [u32; 4]| -> Vec<_> {
        (1..).zip(weights).map(|(n, weight)| Member { weight, ..member(n) }).collect()
    };
    let owned = |layout: &Layout| [1, 2, 3, 4].map(|n| layout.ring().owned(node(n)));
    let of = first(&[1], 1);
    let (cluster, incarnation, partitions) = (of.cluster, of.incarnation, of.partitions);
    let (replication_factor, keyspaces) = (1, BTreeMap::new());
    let members = weighted([5, 1, 1, 1]);
    let first = FirstLayout { cluster, incarnation, partitions, replication_factor, members, keyspaces };
    let layout = Layout::first(first).unwrap();
    assert_eq!(owned(&layout), [10, 2, 2, 2]);
    let to = Change::Move { members: weighted([1, 1, 5, 1]), replication_factor };
    let moved = layout.next(&to).and_then(|joint| joint.next(&Change::Finish)).unwrap();
    assert_eq!(owned(&moved), [2, 2, 10, 2]);
}

#[test]
fn the_voters_are_spread_over_zones() {
    for (zones, voters) in
        [("aaabbc", &[1, 2, 4, 5, 6][..]), ("aabc", &[1, 3, 4][..]), ("aaab", &[1, 2, 4][..])]
    {
        let in_zone = |(n, zone): (u8, char)| Member { zone: zone.into(), ..member(n) };
        let members: Vec<_> = (1..).zip(zones.chars()).map(in_zone).collect();
        let expected: Vec<_> = voters.iter().copied().map(node).collect();
        assert_eq!(first_voters(&members), expected, "{zones}");
    }
}

/// As soon as others can.
#[test]
pub(crate) fn whoever_is_away_votes_no_longer() {
    let now = first(&[1, 2, 3, 4], 3);
    assert_eq!(now.voters, [1, 2, 3].map(node));
    let next = now.next_without(&Change::Voters, &nodes(&[2])).unwrap();
    assert_eq!(next.voters, [1, 3, 4].map(node));
    assert_eq!(check_step(&now, &next), Ok(Step::Same));
    let few = first(&[1, 2, 3], 3);
    assert_eq!(few.next_without(&Change::Voters, &nodes(&[2])), Err(SuccessionError::Nothing));
}

#[test]
fn another_number_of_replicas_takes_a_move_and_goes_with_it() {
    for (before, after) in [(1, 3), (3, 1), (3, 2), (2, 3)] {
        let now = first(&[1, 2, 3], before);
        let moving = now.next(&to(&[1, 2, 3], after)).unwrap();
        assert!(moving.is_joint(), "{before} to {after}");
        let factors = moving.rings().map(Ring::replication_factor).collect::<Vec<_>>();
        assert_eq!(factors, [before, after]);
        let (moved, back) = (moving.next(&Change::Finish).unwrap(), moving.next(&Change::Abort).unwrap());
        assert_eq!(moved.replication_factor, after);
        assert_eq!(back.ring(), now.ring());
        // More are wanted still, until that is given up: the ring is the one that is wanted then.
        let given_up = match back.replication_factor == before {
            true => back,
            false => back.next(&to(&[1, 2, 3], before)).unwrap(),
        };
        assert_eq!((given_up.replication_factor, given_up.ring()), (before, now.ring()));
        assert!(!given_up.is_moving());
    }
}

fn standing(fence: u64, phase: u64, whole: impl IntoIterator<Item = u16>) -> Standing {
    Standing {
        fence: Epoch(fence),
        phase: Epoch(phase),
        whole: whole.into_iter().map(Partition).collect(),
        ..Standing::default()
    }
}

fn evidence(all: &[(u8, Standing)]) -> Evidence {
    all.iter().map(|(n, standing)| (node(*n), standing.clone())).collect()
}

#[test]
pub(crate) fn the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own() {
    let now = joint();
    assert_eq!((now.epoch, now.phase_since), (Epoch(3), Epoch(3)));
    let whole = || standing(3, 3, 0..16);
    let fence = |waiting: &[u8]| GateError::Fence {
        partition: Partition(0),
        epoch: Epoch(3),
        waiting_for: now
            .source_ring()
            .replicas(Partition(0))
            .iter()
            .map(|replica| replica.node)
            .filter(|replica| waiting.contains(&replica.0[0]))
            .collect(),
    };
    let merge = |partition, others, waiting: &[u8]| GateError::Merge {
        partition: Partition(partition),
        others,
        waiting_for: waiting.iter().copied().map(node).collect(),
    };
    let cases = [
        (evidence(&[]), Err(fence(&[1, 2, 3]))),
        // Node 4 is no replica of the ring that both phases have.
        (evidence(&[(2, whole()), (4, whole())]), Err(fence(&[1, 3]))),
        (evidence(&[(2, whole()), (3, standing(2, 1, [])), (4, whole())]), Err(fence(&[1, 3]))),
        (evidence(&[(2, whole()), (3, whole())]), Err(merge(0, 15, &[4]))),
        (evidence(&[(2, whole()), (3, whole()), (4, standing(3, 3, 0..15))]), Err(merge(15, 0, &[4]))),
        // What was merged in another phase is nothing.
        (evidence(&[(2, whole()), (3, whole()), (4, standing(3, 2, 0..16))]), Err(merge(0, 15, &[4]))),
        (evidence(&[(1, standing(3, 3, [])), (2, whole()), (4, whole())]), Err(merge(0, 15, &[3]))),
        (evidence(&[(2, whole()), (3, whole()), (4, whole())]), Ok(())),
    ];
    for (evidence, expected) in cases {
        assert_eq!(check_gate(&now, Step::Finish, &evidence), expected, "{evidence:?}");
        assert_eq!(check_gate(&now, Step::Same, &evidence), Ok(()));
        assert_eq!(check_gate(&now, Step::Abort, &evidence), Ok(()));
    }
    let all = evidence(&[(1, whole()), (2, whole()), (3, whole()), (4, whole())]);
    let one_lost = now.next(&Change::Lose(nodes(&[4]))).unwrap();
    assert_eq!(check_gate(&one_lost, Step::Finish, &all), Ok(()), "nobody waits for what is lost");
    let two_lost = now.next(&Change::Lose(nodes(&[3, 4]))).unwrap();
    assert_eq!(check_gate(&two_lost, Step::Finish, &all), Err(GateError::Lost { partition: Partition(0) }));
    // What is lost is no fence, whatever it has said.
    let two_lost = now.next(&Change::Lose(nodes(&[1, 2]))).unwrap();
    assert_eq!(check_gate(&two_lost, Step::Finish, &all), Err(fence(&[1, 2])));
}

#[test]
pub(crate) fn a_move_waits_for_the_fences_of_the_phase_before_it_whether_that_was_finished_or_aborted() {
    assert_eq!(check_gate(&first(&[1, 2, 3], 3), Step::Begin, &Evidence::new()), Ok(()));
    for (change, fenced) in [(Change::Finish, [3, 4]), (Change::Abort, [1, 2])] {
        let now = joint().next(&change).unwrap();
        assert_eq!(now.phase_since, Epoch(4));
        let gate = |evidence: &[(u8, Standing)]| check_gate(&now, Step::Begin, &self::evidence(evidence));
        let [a, b] = fenced;
        assert_eq!(gate(&[(a, standing(4, 4, [])), (b, standing(4, 4, []))]), Ok(()));
        assert!(matches!(
            gate(&[(a, standing(4, 4, [])), (b, standing(3, 3, []))]),
            Err(GateError::Fence { .. })
        ));
        // A later epoch of the same rings changes nothing of what has to be fenced.
        let later = now.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
        let enough = evidence(&[(a, standing(4, 4, [])), (b, standing(5, 4, []))]);
        assert_eq!(check_gate(&later, Step::Begin, &enough), Ok(()));
    }
}

/// Any change that somebody could want, of nodes that are there or new ones.
fn change(layout: &Layout, (kind, pick, factor): (u8, u16, usize), new: u8) -> (Change, BTreeSet<NodeId>) {
    let picked = |member: &&Member| pick & 1 << (member.node.0[0] % 16) != 0;
    let some: Vec<_> = layout.members.iter().filter(picked).cloned().collect();
    let names: BTreeSet<_> = some.iter().map(|member| member.node).collect();
    let one: BTreeSet<_> = names.iter().take(1).copied().collect();
    let change = match kind {
        0 | 1 => Change::Admit(vec![member(new)]),
        2..=4 => Change::Move {
            members: some.into_iter().filter(|member| !member.is_lost).collect(),
            replication_factor: factor,
        },
        5 | 6 => Change::Finish,
        7 => Change::Abort,
        8 => Change::Lose(one),
        9 | 10 => {
            let idle = names.into_iter().filter(|node| layout.owned(*node) == 0);
            Change::Dismiss(idle.collect())
        }
        11 => keyspace(&format!("k{pick}"), KeyspaceMode::Siblings),
        _ => return (Change::Voters, names),
    };
    (change, BTreeSet::new())
}

fn check_voters(layout: &Layout) {
    let holds = |node: NodeId| layout.rings().map(|ring| ring.owned(node) > 0).collect::<Vec<_>>();
    let live = || layout.members.iter().filter(|member| !member.is_lost).map(|member| member.node);
    let holders = live().filter(|node| holds(*node).contains(&true)).count();
    let count = [7, 5, 3, 1].into_iter().find(|count| *count <= holders).unwrap_or(1);
    assert_eq!(layout.voters.len(), count);
    let lasting: BTreeSet<_> = live().filter(|node| !holds(*node).contains(&false)).collect();
    let voters: BTreeSet<_> = layout.voters.iter().copied().collect();
    assert!(lasting.is_subset(&voters) || voters.is_subset(&lasting), "{lasting:?} {voters:?}");
}

/// No two quorums, one of each layout, are without a common replica.
fn check_quorums(now: &Layout, next: &Layout) {
    let all: Vec<_> = next.members.iter().chain(&now.members).map(|member| member.node).collect();
    for partition in now.partitions.all() {
        let replicas: Vec<_> = all
            .iter()
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|node| now.is_replica(partition, *node) || next.is_replica(partition, *node))
            .collect();
        let (a, b) = (now.replica_sets(partition), next.replica_sets(partition));
        for bits in 0u32..1 << replicas.len() {
            let is_in = |node: &NodeId| {
                replicas.iter().position(|replica| replica == node).is_some_and(|at| bits & 1 << at != 0)
            };
            let apart = a.satisfied(Consistency::Quorum, is_in)
                && b.satisfied(Consistency::Quorum, |node| !is_in(node));
            assert!(!apart, "{partition}: {a:?} {b:?}");
        }
    }
}

fn check_follows(now: &Layout, next: &Layout, change: &Change) {
    assert_eq!(next.validate(), Ok(()));
    let step = match change {
        Change::Finish => Step::Finish,
        Change::Abort => Step::Abort,
        Change::Move { .. } if next.is_joint() => Step::Begin,
        _ => Step::Same,
    };
    assert_eq!(check_step(now, next), Ok(step));
    assert_eq!(next.phase_since, if step == Step::Same { now.phase_since } else { next.epoch });
    assert!(now.departed.is_subset(&next.departed));
    assert!(next.departed.iter().all(|node| next.member(*node).is_none()));
    for partition in now.partitions.all() {
        for node in next.replicas(partition) {
            let since = next.since(partition, node).unwrap();
            assert_eq!(since, now.since(partition, node).unwrap_or(next.epoch));
        }
    }
    check_voters(next);
    check_quorums(now, next);
    // The same layout is no successor of itself, nor of the one before that.
    assert!(check_step(next, next).is_err());
    for spoil in [
        |layout: &mut Layout| layout.epoch.0 += 1,
        |layout: &mut Layout| layout.phase_since.0 = layout.phase_since.0 % layout.epoch.0 + 1,
        |layout: &mut Layout| {
            layout.keyspaces.remove("default");
        },
        |layout: &mut Layout| {
            layout.voters.pop();
        },
        |layout: &mut Layout| layout.incarnation.number += 1,
    ] {
        let mut spoilt = next.clone();
        spoil(&mut spoilt);
        assert!(check_step(now, &spoilt).is_err(), "{spoilt:?}");
    }
    // One more than `next` has may be what `now` has, where a factor that was wanted is given up: nothing changes then.
    let replication_factor = now.replication_factor.max(next.replication_factor) + 1;
    let spoilt = Layout { replication_factor, ..next.clone() };
    assert!(check_step(now, &spoilt).is_err(), "{spoilt:?}");
}

#[test]
fn whatever_follows_is_legal_and_neighbours_share_a_replica() {
    let steps = RefCell::new(Vec::new());
    let wants = || prop::collection::vec((0u8..14, any::<u16>(), 1usize..5), 1..40);
    proptest!(ProptestConfig::with_cases(64), |(factor in 1usize..4, wants in wants())| {
        let mut layout = first(&[1, 2, 3], factor);
        let (mut new, mut sinces) = (4, BTreeMap::new());
        for want in wants {
            let (change, away) = change(&layout, want, new);
            if layout.members.len() > 7 && matches!(change, Change::Admit(_)) {
                continue;
            }
            new += u8::from(matches!(change, Change::Admit(_)));
            let Ok(next) = layout.next_without(&change, &away) else { continue };
            check_follows(&layout, &next, &change);
            steps.borrow_mut().extend(check_step(&layout, &next));
            for partition in next.partitions.all() {
                for node in next.replicas(partition) {
                    let since = next.since(partition, node);
                    let before = sinces.insert((partition, node), since);
                    prop_assert!(before.is_none_or(|before| before <= since));
                }
            }
            layout = next;
        }
    });
    for step in [Step::Same, Step::Begin, Step::Finish, Step::Abort] {
        let count = steps.borrow().iter().filter(|taken| **taken == step).count();
        println!("{step:?}: {count}");
        assert!(count > 0, "{step:?} was never tried");
    }
}
