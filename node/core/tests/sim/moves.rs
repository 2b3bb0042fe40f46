//! Who the members are changes while everything else happens: nodes join, leave and are given up, moves of data begin,
//! end and are aborted. What may follow what, and when, is looked up in the simulated disks.

use std::collections::BTreeSet;

use keystore_core::effect::{Answer, Event};
use keystore_core::id::{Actor, Epoch, NodeId};
use keystore_core::layout::{Layout, Member, Phase, Term};
use keystore_core::message::{Header, Message};
use keystore_core::partition::RecordKey;
use keystore_core::paxos::{Ballot, Say};
use keystore_core::quorum::Consistency;
use keystore_core::ring::Ring;
use keystore_core::stamp::Stamp;
use keystore_core::succession::{Change, Step, check_step};

use crate::coverage::Path;
use crate::disk::Disk;
use crate::machine::{Machine, Standing};
use crate::plan::Plan;
use crate::violation::{Checker, Violation};
use crate::world::{Pending, World};

/// After everything has healed a move has ended within this time.
pub(crate) const MOVED_WITHIN_MS: u64 = 60_000;

/// Of the layout that may follow.
pub(crate) fn next_term(layout: &Layout) -> Term {
    (layout.incarnation, Epoch(layout.epoch.0 + 1))
}

impl Plan {
    /// How many machines there are, members or not.
    pub(crate) fn machines(&self) -> usize {
        self.nodes + self.spares
    }

    pub(crate) fn moves(&self) -> bool {
        self.move_every_ms > 0
    }
}

impl World {
    pub(crate) fn let_the_steward_in(&mut self) {
        if self.plan.moves() {
            self.target = (0..self.plan.nodes).collect();
            self.look_after_later();
        }
        self.let_the_person_in();
    }

    fn look_after_later(&mut self) {
        let every_ms = if self.is_healed { 100 } else { self.plan.move_every_ms };
        let wait = self.rng.between(1, 2 * every_ms);
        self.after(wait, Pending::Steward);
    }

    /// The machines that are members by the newest layout and can come back.
    pub(crate) fn members(&self) -> Vec<usize> {
        let is_member = |machine: &Machine| {
            machine.standing != Standing::Gone
                && !machine.is_stale
                && self.layout.member(machine.id).is_some_and(|member| !member.is_lost)
        };
        (0..self.plan.machines()).filter(|n| is_member(&self.machines[*n])).collect()
    }

    /// The newest layout, and each that may follow it: somebody has proposed it, and may have been voted for.
    pub(crate) fn layouts_to_come(&self) -> impl Iterator<Item = &Layout> {
        let proposed = self.proposed.get(&next_term(&self.layout)).into_iter().flatten();
        std::iter::once(&self.layout).chain(proposed)
    }

    /// The layout that a machine goes by, or the newest one for a machine that goes by none.
    pub(crate) fn layout_at(&self, n: usize) -> &Layout {
        self.machines[n].node.as_ref().and_then(|node| node.layout()).unwrap_or(&self.layout)
    }

    /// Proposes one step, to one node.
    pub(crate) fn steward_acts(&mut self) {
        self.look_after_later();
        let candidates: Vec<_> = self.members().into_iter().filter(|n| self.is_running(*n)).collect();
        if candidates.is_empty() {
            return;
        }
        let n = self.rng.pick(&candidates);
        let layout = self.layout_at(n).clone();
        let Some(next) = self.next_layout(&layout) else { return };
        self.note(format_args!("machine {n} is to propose epoch {}", next.epoch));
        let request = self.next_request();
        self.proposals.insert(request, next.clone());
        self.proposed.entry(next.term()).or_default().push(next.clone());
        self.step(n, Event::Propose { request, expected: layout.epoch, layout: Box::new(next) });
    }

    fn next_layout(&mut self, layout: &Layout) -> Option<Layout> {
        // The voters have decided, and whoever knew of it is gone: whatever is proposed, it comes out.
        let unknown = self.layouts.get(&next_term(layout)).filter(|_| self.is_healed);
        if let Some(decided) = unknown {
            return Some(decided.clone());
        }
        let change = self.wish_for(layout)?;
        self.note(format_args!("wanted after epoch {}: {change:?}", layout.epoch));
        layout.next_without(&change, &self.away(layout)).ok()
    }

    fn wish_for(&mut self, layout: &Layout) -> Option<Change> {
        let given_up: BTreeSet<NodeId> = self.given_up(layout).collect();
        if !given_up.is_empty() && (self.is_healed || self.rng.chance(20)) {
            return Some(Change::Lose(given_up));
        }
        if self.rng.chance(5) {
            return Some(Change::Voters);
        }
        if self.plan.varies
            && !self.is_healed
            && self.rng.chance(15)
            && let Some(change) = self.vary(layout)
        {
            return Some(change);
        }
        if layout.is_moving() {
            let goes_back = if self.is_healed { 2 } else { 12 };
            return Some(if self.rng.chance(goes_back) { Change::Abort } else { Change::Finish });
        }
        let is_empty = |member: &&Member| layout.rings().all(|ring| ring.owned(member.node) == 0);
        let wanted = |member: &&Member| self.target.iter().any(|n| self.machines[*n].id == member.node);
        let empty: BTreeSet<_> =
            layout.members.iter().filter(is_empty).filter(|m| !wanted(m)).map(|m| m.node).collect();
        if !empty.is_empty() && self.rng.chance(50) {
            let closing = self.close_to_data(layout, &empty).filter(|_| self.plan.varies && !self.is_healed);
            return Some(match closing.filter(|_| self.rng.chance(70)) {
                Some(closing) => closing,
                None => Change::Dismiss(empty),
            });
        }
        if self.is_healed {
            return self.restoration(layout);
        }
        let is_dead = |n: &usize| self.machines[*n].standing == Standing::Gone || self.hurt.contains(n);
        let is_short = self.plan.varies && self.target.len() < self.factor;
        if is_short || self.target.iter().any(is_dead) || self.rng.chance(30) {
            self.choose_target();
        }
        let factor = if self.plan.varies { self.factor.min(self.target.len()) } else { self.factor };
        let members = self.target.iter().map(|n| self.member(*n, layout)).collect();
        Some(admitted_and_moved(layout, members, factor))
    }

    /// Members that will never be back.
    fn given_up<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = NodeId> + 'a {
        let is_gone = |node: NodeId| {
            let machine = self.machines.iter().find(|machine| machine.id == node);
            machine.is_some_and(|machine| machine.standing == Standing::Gone)
        };
        layout
            .members
            .iter()
            .filter(|member| !member.is_lost)
            .map(|m| m.node)
            .filter(move |node| is_gone(*node))
    }

    fn away(&self, layout: &Layout) -> BTreeSet<NodeId> {
        let away = self.machines.iter().filter(|machine| machine.standing != Standing::Running);
        away.map(|machine| machine.id).filter(|node| layout.member(*node).is_some()).collect()
    }

    fn choose_target(&mut self) {
        let mut left: Vec<_> = (0..self.plan.machines())
            .filter(|n| self.machines[*n].standing != Standing::Gone && !self.hurt.contains(n))
            .filter(|n| !self.is_left_behind(*n))
            .collect();
        let most = left.len() as u64;
        let least = if self.plan.varies { most.min(self.factor as u64) } else { self.factor as u64 };
        if most < least.max(1) {
            return;
        }
        let count = self.rng.between(least, most) as usize;
        while left.len() > count {
            let at = self.rng.index(left.len());
            left.remove(at);
        }
        self.target = left.into_iter().collect();
    }

    pub(crate) fn member(&self, n: usize, layout: &Layout) -> Member {
        let machine = &self.machines[n];
        let present = layout.member(machine.id).filter(|member| member.weight > 0);
        present.cloned().unwrap_or(Member {
            node: machine.id,
            actor: machine.actor,
            name: format!("node-{n}"),
            zone: self.plan.zone(n),
            weight: self.plan.weight(n),
            is_lost: layout.is_lost(machine.id),
        })
    }

    pub(crate) fn note_proposal(&mut self, n: usize, proposed: &Layout, answer: &Answer) {
        self.note(format_args!(
            "machine {n}: the proposal of epoch {} ends: {}",
            proposed.epoch,
            brief(answer)
        ));
        match answer {
            Answer::Decided(layout) if **layout == *proposed => {}
            Answer::Decided(_) => self.coverage.count(Path::AnotherWasDecided),
            _ => self.coverage.count(Path::ProposalFailed),
        }
    }

    /// A node is about to take up a layout.
    pub(crate) fn check_layout(&mut self, n: usize, layout: &Layout, is_decided: bool) {
        let before = self.machines[n].disk.state.membership.clone();
        if let Some((before, _)) = &before
            && before.incarnation != layout.incarnation
        {
            self.check_incarnation(n, before, layout);
        }
        if let Some((before, _)) = &before
            && (before.epoch > layout.epoch
                || before.epoch == layout.epoch && before.digest() != layout.digest())
        {
            let what = format!("machine {n} takes up {layout:?} after {before:?}");
            let checker = match layout.epoch == Epoch(1) {
                true => Checker::ServingMeansAllAccepted,
                false => Checker::OneLayoutAnEpoch,
            };
            self.violate(Violation::of_the_world(checker, what));
        }
        if !is_decided {
            return;
        }
        self.note_decided(n, layout);
    }

    /// A node takes a layout for decided.
    fn note_decided(&mut self, n: usize, layout: &Layout) {
        let first = self.layouts.entry(layout.term()).or_insert_with(|| layout.clone());
        if first.digest() != layout.digest() {
            let what = format!("machine {n} takes {layout:?} for decided, and another one {first:?}");
            return self.violate(Violation::of_the_world(Checker::OneLayoutAnEpoch, what));
        }
        if layout.term() <= self.layout.term() {
            return;
        }
        if layout.incarnation != self.layout.incarnation {
            self.note_recovered(n, layout);
        }
        let before = (layout.incarnation, Epoch(layout.epoch.0 - 1));
        if let Some(before) = self.layouts.get(&before).cloned() {
            self.check_followed(&before, layout);
        }
        self.layout = layout.clone();
    }

    /// Rule 15: what a node holds of a partition is from when it has been a replica of it without a break. To be asked when
    /// something has been saved: until then, whatever it had acknowledged counts.
    pub(crate) fn check_emptiness(&mut self, n: usize, acknowledged: Epoch) {
        let machine = &self.machines[n];
        let Some((layout, _)) = &machine.disk.state.membership else { return };
        let is_leftover = |key: &&RecordKey| {
            let since = layout.since(key.partition(layout.partitions), machine.id);
            since.is_some_and(|since| since > acknowledged)
        };
        let leftover = machine.disk.keys().find(is_leftover).cloned();
        if let Some(key) = leftover {
            let what =
                format!("machine {n} becomes a replica of {key:?} in epoch {} and holds it", layout.epoch);
            self.violate(Violation::new(Checker::MembersBeginEmpty, &key, what));
        }
    }

    /// True if a machine is to leave nothing of a key, before it is a replica of it by a layout that is decided.
    pub(crate) fn is_cleared(&self, n: usize, key: &RecordKey) -> bool {
        let machine = &self.machines[n];
        let acknowledged =
            machine.disk.state.membership.as_ref().map_or(Epoch(0), |(layout, _)| layout.epoch);
        let partition = key.partition(self.layout.partitions);
        let mut later = self.layouts.values().chain(self.recovery.layouts());
        later.any(|layout| layout.since(partition, machine.id).is_some_and(|since| since > acknowledged))
    }

    /// True if a machine is no replica of a key by the layout on its disk, and so drops what it holds of it, or (a broken
    /// promise) does that though it is one.
    pub(crate) fn is_left(&mut self, n: usize, key: &RecordKey) -> bool {
        let machine = &self.machines[n];
        let Some((layout, true)) = &machine.disk.state.membership else { return false };
        let epoch = layout.epoch;
        if layout.is_replica(key.partition(layout.partitions), machine.id) {
            if !machine.doubted.contains_key(key) && !machine.is_stale {
                let what = format!("machine {n} drops {key:?}, of which it is a replica in epoch {epoch}");
                self.violate(Violation::new(Checker::ReplicasDropNothing, key, what));
            }
            return false;
        }
        let is_behind = |machine: &&Machine| {
            let acknowledged = machine.disk.state.membership.as_ref().map(|(layout, _)| layout.epoch);
            layout.member(machine.id).is_some_and(|member| !member.is_lost)
                && machine.standing != Standing::Gone
                && !machine.is_stale
                && acknowledged.is_none_or(|acknowledged| acknowledged < layout.phase_since)
        };
        if let Some(behind) = self.machines.iter().find(is_behind).map(|machine| machine.id) {
            let since = layout.phase_since;
            let what = format!("machine {n} drops {key:?}, and {behind} has not acknowledged epoch {since}");
            self.violate(Violation::new(Checker::NobodyAsksForWhatIsDropped, key, what));
        }
        true
    }

    /// Rules 21 and 22, by what is on the disks. (A layout may have been decided a while ago: what was so then is so.)
    fn check_followed(&mut self, before: &Layout, layout: &Layout) {
        let Ok(step) = check_step(before, layout) else {
            let what = format!("{layout:?} is decided after {before:?}");
            return self.violate(Violation::of_the_world(Checker::OneLayoutAnEpoch, what));
        };
        let lost =
            layout.members.iter().filter(|member| member.is_lost && !before.is_lost(member.node)).count();
        self.count_varied(before, layout, step);
        let died_in = Some((before.incarnation, before.phase_since));
        if matches!(step, Step::Finish | Step::Abort) && self.died_in == died_in {
            self.coverage.count(Path::MoveEndedAfterADeath);
        }
        match step {
            Step::Begin => {
                self.coverage.count(Path::MoveBegun);
                self.floors_then = self.floors.clone();
            }
            Step::Finish if !before.salvaged.is_empty() => self.coverage.count(Path::RecoveryFinished),
            Step::Finish => self.coverage.count(Path::MoveFinished),
            Step::Abort => self.coverage.count(Path::MoveAborted),
            Step::Same if lost > 0 => self.coverage.count(Path::MemberLost),
            Step::Same if layout.departed.len() > before.departed.len() => {
                self.coverage.count(Path::MemberDismissed);
            }
            Step::Same => {}
        }
        if matches!(step, Step::Begin | Step::Finish) {
            self.check_fences(before);
        }
        if let (Step::Finish, Phase::Stable(ring)) = (step, &layout.phase) {
            self.check_kept(ring, before);
        }
    }

    fn check_fences(&mut self, before: &Layout) {
        let has_fenced = |node: NodeId| {
            // A disk that was lost since had it, and nobody will ever speak for it again.
            let machine = self.machines.iter().find(|machine| machine.id == node);
            let state = machine.and_then(|machine| machine.disk.state.membership.as_ref());
            machine.is_some_and(|machine| machine.is_stale)
                || state.is_some_and(|(layout, decided)| {
                    // Whoever has accepted a recovery since takes part in nothing of before.
                    (*decided || layout.incarnation != before.incarnation)
                        && layout.epoch >= before.phase_since
                })
        };
        for (partition, replicas) in before.source_ring().iter() {
            let fenced = replicas.iter().filter(|replica| has_fenced(replica.node)).count();
            let quorum = Consistency::Quorum.needed(replicas.len());
            if before.phase_since > Epoch(1) && fenced + quorum <= replicas.len() {
                let what = format!("{partition} had {fenced} fences of epoch {}", before.phase_since);
                return self.violate(Violation::of_the_world(Checker::MovesWaitForFences, what));
            }
        }
    }

    /// What was promised is held by a quorum of the ring that stands alone from now on, and what was promised before the
    /// move by each of its replicas that is not lost. One that is lost is in no quorum any more: those that are left, as
    /// many as make one, always meet somebody who has it if no more of them lack it than may be missing in a quorum.
    fn check_kept(&mut self, ring: &Ring, before: &Layout) {
        let holds = |node: NodeId, key: &RecordKey, floor: Stamp| {
            let machine = self.machines.iter().find(|machine| machine.id == node);
            machine.is_some_and(|machine| {
                machine.is_stale || machine.disk.ever_synced(key).any(|stored| stored.stamp >= floor)
            })
        };
        let replicas = |key: &RecordKey| ring.replicas(key.partition(before.partitions));
        let is_kept = |(key, floor): (&RecordKey, &Stamp)| {
            let lacks = |node: NodeId| !before.is_lost(node) && !holds(node, key, *floor);
            let lacking = replicas(key).iter().filter(|replica| lacks(replica.node)).count();
            replicas(key).len() - lacking >= Consistency::Quorum.needed(replicas(key).len())
        };
        let is_everywhere = |(key, floor): (&RecordKey, &Stamp)| {
            let mut left = replicas(key).iter().filter(|replica| !before.is_lost(replica.node));
            !before.has_to_merge(key.partition(before.partitions))
                || left.all(|replica| holds(replica.node, key, *floor))
        };
        let missing = self.floors.iter().find(|promised| !is_kept(*promised));
        let missing = missing.or_else(|| self.floors_then.iter().find(|promised| !is_everywhere(*promised)));
        if let Some((key, floor)) = missing.map(|(key, floor)| (key.clone(), *floor)) {
            let what = format!("{floor:?} was promised, and not all of {:?} have it", replicas(&key));
            self.violate(Violation::new(Checker::MovesKeepWhatWasPromised, &key, what));
        }
    }

    /// A node has learnt that it is no member any more.
    pub(crate) fn check_departure(&mut self, n: usize) {
        let id = self.machines[n].id;
        if self.layout.member(id).is_some_and(|member| !member.is_lost) {
            let what = format!("machine {n} gives up its disk, and is a member");
            self.violate(Violation::of_the_world(Checker::SetAsideHasAReason, what));
        }
        self.coverage.count(if self.is_past(n) { Path::LostCameBack } else { Path::Departed });
        self.end_for_good(n);
        if !self.machines[n].is_stale && n < self.plan.machines() {
            let wait = self.rng.between(10, 500);
            self.after(wait, Pending::Rejoin { machine: n });
        }
    }

    /// Somebody who was dismissed and waits to become a member.
    pub(crate) fn unaware(&self) -> Option<NodeId> {
        let is_unaware = |machine: &&Machine| {
            machine.node.as_ref().is_some_and(|node| node.layout().is_none())
                && self.layout.departed.contains(&machine.id)
        };
        self.machines[..self.plan.machines()].iter().find(is_unaware).map(|machine| machine.id)
    }

    /// Whoever was dismissed before it heard that it was a member has heard of it by now.
    pub(crate) fn check_unaware(&mut self) {
        if let Some(node) = self.unaware() {
            let what = format!("{node} waits to become a member, and has departed");
            self.violate(Violation::of_the_world(Checker::TheDepartedHearOfIt, what));
        }
    }

    /// The machine starts with an empty disk, as a new node.
    pub(crate) fn rejoin(&mut self, n: usize) {
        let before = &self.machines[n];
        let mut id = before.id;
        id.0[0] = id.0[0].wrapping_add(16);
        let actor = Actor(before.actor.0 + 1_000);
        let mut machine = Machine::new(n, before.clock_ms);
        machine.life = before.life + 1;
        (machine.id, machine.actor) = (id, actor);
        machine.disk.lies = self.plan.disks_lie;
        self.machines[n] = machine;
        self.hurt.remove(&n);
        self.note(format_args!("machine {n} is {id} from now on"));
        self.start(n);
    }

    /// What is said about layouts is on the disk of whoever says it.
    pub(crate) fn check_said_of_layouts(&mut self, n: usize, header: &Header, message: &Message) {
        let Disk { state, .. } = &self.machines[n].disk;
        let fenced = state.membership.as_ref().map(|(layout, _)| layout.term()).unwrap_or_default();
        if (header.incarnation, header.epoch) > fenced && header.epoch > Epoch(0) {
            let what = format!("machine {n} speaks under epoch {}, and has {fenced:?} on disk", header.epoch);
            return self.violate(Violation::of_the_world(Checker::FencesAreDurable, what));
        }
        if let Message::Layout { layout, .. } = message {
            return self.note_decided(n, &layout.clone());
        }
        let Message::Paxos { epoch, ballot, say } = message else { return };
        let votes = &self.machines[n].disk.state.votes;
        let is_kept = match **say {
            Say::Promise { .. } => votes.epoch > *epoch || votes.epoch == *epoch && votes.promised >= *ballot,
            Say::Accepted => {
                let vote = votes.accepted.as_ref().filter(|_| votes.epoch == *epoch);
                votes.epoch > *epoch || vote.is_some_and(|vote| vote.ballot >= *ballot)
            }
            Say::Prepare | Say::Accept { .. } | Say::Outbid { .. } | Say::Refused { .. } => true,
        };
        if !is_kept {
            let what = format!("machine {n} says {say:?} under {ballot:?}, and has {votes:?} on disk");
            return self.violate(Violation::of_the_world(Checker::VotesAreDurable, what));
        }
        if let Say::Accept { .. } = **say
            && !self.is_promised((header.incarnation, *epoch), *ballot)
        {
            let what = format!("machine {n} asks for votes under {ballot:?}, which too few have promised");
            self.violate(Violation::of_the_world(Checker::VotesNeedPromises, what));
        }
    }

    /// True if a majority of those that vote on an epoch has promised a ballot, or a higher one.
    fn is_promised(&self, (incarnation, epoch): Term, ballot: Ballot) -> bool {
        let Some(before) = self.layouts.get(&(incarnation, Epoch(epoch.0 - 1))) else { return true };
        let has_promised = |voter: &&NodeId| {
            let machine = self.machines.iter().find(|machine| machine.id == **voter);
            machine.is_none_or(|Machine { disk: Disk { state, .. }, is_stale, .. }| {
                // What a disk that was lost had on it counts, and nobody will ever speak for it again.
                *is_stale
                    || state.votes.epoch > epoch
                    || state.votes.epoch == epoch && state.votes.promised >= ballot
            })
        };
        before.voters.iter().filter(has_promised).count() > before.voters.len() / 2
    }

    /// An answer is of the epoch under which it was asked for.
    pub(crate) fn check_epoch_of_answer(&mut self, n: usize, header: &Header, message: &Message) {
        let call = match message {
            // A dot counts whenever it was given.
            Message::WriteAnswer { call, .. }
            | Message::ReadAnswer { call, .. }
            | Message::ScanAnswer { call, .. } => *call,
            _ => return,
        };
        if call.operation == 0 || message.refusal().is_some() {
            return;
        }
        let asked = self.machines[n].asked_under.get(&(header.to, call)).copied();
        let now = (header.incarnation, header.epoch);
        if asked.is_some_and(|asked| asked != now) {
            let what = format!("machine {n} answers under {now:?} what was asked under {asked:?}");
            self.violate(Violation::of_the_world(Checker::AnswersAreOfTheirEpoch, what));
        }
    }
}

/// The next step towards these members' holding all: nobody is given data before it was admitted.
pub(crate) fn admitted_and_moved(layout: &Layout, members: Vec<Member>, replication_factor: usize) -> Change {
    let is_admitted = |member: &&Member| layout.member(member.node).is_some_and(|present| present.weight > 0);
    let strangers: Vec<_> = members.iter().filter(|member| !is_admitted(member)).cloned().collect();
    match strangers.is_empty() {
        true => Change::Move { members, replication_factor },
        false => Change::Admit(strangers),
    }
}

fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Decided(layout) => format!("epoch {} is decided", layout.epoch),
        other => format!("{other:?}"),
    }
}
