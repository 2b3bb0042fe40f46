//! More is lost than the store can bear: so many machines at once that no majority of those who vote is left, or no quorum
//! of some partition. Then a person has the rest go on without them.
//!
//! The person does what `keystorectl recover` does, by the same plan ([`plan_attempt`]): asks all that are left, and gives
//! them the layout that comes of it. Some are never given it, some late, when another attempt is under way already, some
//! die of it; then the person asks again. Of the machines that were called lost, some live, and come back once the others
//! have gone on. What is promised then is said in [`crate::salvage`].

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::effect::{Answer, Event, RequestId};
use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use keystore_core::node::NodeState;
use keystore_core::partition::Partition;
use keystore_core::quorum::Consistency;
use keystore_core::recovery::{Attempt, Left, Losses, plan_attempt};
use keystore_core::succession::Change;

use crate::coverage::Path;
use crate::machine::{Machine, Standing};
use crate::moves::admitted_and_moved;
use crate::plan::Plan;
use crate::salvage::Holdings;
use crate::violation::{Checker, Violation};
use crate::world::{Pending, World};

/// What was ever tried.
#[derive(Debug)]
pub(crate) struct Tried {
    pub(crate) before: Layout,
    pub(crate) losses: Losses,
    pub(crate) layout: Layout,
    pub(crate) has_been_in_force: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Called lost, whatever becomes of them.
    pub(crate) lost: BTreeSet<NodeId>,
    pub(crate) tried: Vec<Tried>,
    /// With which a layout was handed over.
    pub(crate) requests: BTreeSet<RequestId>,
    /// What a machine had when a layout was on its disk as accepted, by the digest of that.
    pub(crate) accepted: BTreeMap<(NodeId, u64), Holdings>,
    /// What there was of the partitions that the newest layout has salvaged.
    pub(crate) left: Holdings,
    /// Everything has healed, and what was lost is made up for.
    pub(crate) is_over: bool,
}

impl Recovery {
    pub(crate) fn layouts(&self) -> impl Iterator<Item = &Layout> {
        self.tried.iter().map(|tried| &tried.layout)
    }
}

/// What one machine says to the person.
struct Heard {
    layout: Layout,
    is_serving: bool,
    doubted: BTreeSet<Partition>,
}

impl Plan {
    pub(crate) fn recovers(&self) -> bool {
        self.great_losses > 0
    }
}

/// True if without these nodes, and those that are in doubt of it, some partition has no quorum in a ring in force.
fn is_short(layout: &Layout, partition: Partition, losses: &Losses) -> bool {
    let is_trusted = |node: &NodeId| {
        let is_doubted = losses.doubted.get(node).is_some_and(|doubted| doubted.contains(&partition));
        !is_doubted && !losses.nodes.contains(node) && !layout.is_lost(*node)
    };
    !layout.replica_sets(partition).satisfied(Consistency::Quorum, is_trusted)
}

/// True if nothing can be decided without these nodes, or a partition has lost its quorum.
fn is_hopeless(layout: &Layout, losses: &Losses) -> bool {
    let left = layout.voters.iter().filter(|voter| !losses.nodes.contains(voter)).count();
    left <= layout.voters.len() / 2 || layout.partitions.all().any(|of| is_short(layout, of, losses))
}

impl World {
    pub(crate) fn let_the_person_in(&mut self) {
        if !self.plan.recovers() {
            return;
        }
        for _ in 0..self.plan.great_losses {
            let wait = self.rng.between(300, self.plan.duration_ms * 2 / 3);
            self.after(wait, Pending::GreatLoss);
        }
        self.after(0, Pending::Person);
    }

    /// Takes away machines until the rest cannot go on by itself; at least one is left that has joined the cluster, for who
    /// has not knows of nothing that could be recovered.
    pub(crate) fn strike_great_loss(&mut self) {
        if self.is_healed {
            return;
        }
        let mut losses = Losses { nodes: self.recovery.lost.clone(), ..Losses::default() };
        losses.nodes.extend(self.doomed());
        let mut left: Vec<_> = self.members();
        left.retain(|n| !losses.nodes.contains(&self.machines[*n].id));
        left.retain(|n| self.machines[*n].disk.state.membership.is_some());
        let mut struck = Vec::new();
        let one_more = self.rng.chance(30);
        loop {
            let is_enough = is_hopeless(&self.layout, &losses);
            if left.len() <= 1 || is_enough && (!one_more || struck.is_empty()) && !struck.is_empty() {
                break;
            }
            let n = left.remove(self.rng.index(left.len()));
            losses.nodes.insert(self.machines[n].id);
            struck.push(n);
            if is_enough {
                break;
            }
        }
        if !is_hopeless(&self.layout, &losses) {
            return;
        }
        self.coverage.count(Path::GreatLoss);
        self.recovery.lost = losses.nodes;
        for n in struck {
            let lives_on = self.rng.chance(50) && self.machines[n].disk.state.membership.is_some();
            let standing = if lives_on { Standing::Away } else { Standing::Gone };
            self.hurt.insert(n);
            self.end_as(n, standing);
        }
        // Whoever has a broken log will not start again: the person knows that.
        for n in 0..self.plan.machines() {
            if self.recovery.lost.contains(&self.machines[n].id) && self.is_up_or_down(n) {
                self.end_for_good(n);
            }
        }
        let line = format!("called lost: {:?}", self.recovery.lost);
        self.note(line);
    }

    fn is_up_or_down(&self, n: usize) -> bool {
        !matches!(self.machines[n].standing, Standing::Gone | Standing::Away)
    }

    /// Members that will not be back, or not as they are.
    fn doomed(&self) -> impl Iterator<Item = NodeId> + '_ {
        let is_doomed = |machine: &&Machine| {
            machine.standing == Standing::Gone
                || machine.disk.is_log_damaged
                || machine.disk.state.is_set_aside
        };
        let members = self.machines.iter().filter(|machine| self.layout.member(machine.id).is_some());
        members.filter(is_doomed).map(|machine| machine.id)
    }

    /// True for a machine that was called lost: whatever it says is of the past.
    pub(crate) fn is_past(&self, n: usize) -> bool {
        self.recovery.lost.contains(&self.machines[n].id)
    }

    /// True for a machine that missed a recovery, and has to come back as a new one first.
    pub(crate) fn is_left_behind(&self, n: usize) -> bool {
        let disk = &self.machines[n].disk;
        let is_of_now = |layout: &Layout| layout.incarnation == self.layout.incarnation;
        self.is_past(n) || !disk.state.membership.as_ref().is_none_or(|(layout, _)| is_of_now(layout))
    }

    /// What is lost has not been given up yet, or is being salvaged: nothing more may be lost by chance.
    pub(crate) fn is_salvaging(&self) -> bool {
        let is_open = |node: &NodeId| self.layout.member(*node).is_some_and(|member| !member.is_lost);
        !self.layout.salvaged.is_empty() || self.recovery.lost.iter().any(is_open)
    }

    /// The person asks all that are left, and gives them what comes of it.
    pub(crate) fn person_acts(&mut self) {
        let every_ms = if self.is_healed { 400 } else { 1_500 };
        let wait = self.rng.between(50, every_ms);
        self.after(wait, Pending::Person);
        self.end_what_is_of_the_past();
        let Some((heard, losses)) = self.ask_all_that_are_left() else { return };
        let left: Vec<_> = heard
            .values()
            .map(|heard| Left { layout: &heard.layout, is_serving: heard.is_serving })
            .collect();
        let (attempt, id) = (plan_attempt(&left, &losses, self.rng.next()), self.rng.next());
        let (before, mut layout) = match attempt {
            Ok(Attempt::InForce) => return,
            Ok(Attempt::GoOn(layout)) => {
                self.coverage.count(Path::RecoveryRepeated);
                return self.hand_over_to_all(heard.into_keys(), &layout);
            }
            Ok(Attempt::Begin { before, layout }) => (*before, layout),
            Err(error) => return self.note(format_args!("nothing to recover with: {error}")),
        };
        // Somebody in a hurry takes a number that is too low.
        if self.rng.chance(10) {
            layout.incarnation.number = self.rng.between(2, layout.incarnation.number);
            layout.incarnation.id = id;
        }
        self.count_begun(&heard, &before, &layout);
        // Also those whom an attempt has called lost that has come to nothing.
        let called_lost = layout.members.iter().filter(|member| member.is_lost).map(|member| member.node);
        let losses = Losses { nodes: called_lost.collect(), ..losses };
        self.hand_over_to_all(heard.into_keys(), &layout);
        self.recovery.tried.push(Tried { before, losses, layout, has_been_in_force: false });
    }

    /// Whoever was called lost after it had accepted another attempt has a number as high as those who went on, and whoever
    /// knows none of today's members asks nobody: only the person can tell it that it is of the past.
    fn end_what_is_of_the_past(&mut self) {
        let number = self.layout.incarnation.number;
        let has_as_high = |machine: &Machine| {
            let membership = machine.disk.state.membership.as_ref();
            membership.is_some_and(|(layout, _)| layout.incarnation.number >= number)
        };
        for n in 0..self.plan.machines() {
            let is_past = self.is_healed && !self.is_salvaging() && self.is_past(n);
            let hears_nothing = has_as_high(&self.machines[n]) || !self.knows_somebody(n);
            if is_past && self.is_running(n) && hears_nothing {
                self.end_for_good(n);
                self.after(100, Pending::Rejoin { machine: n });
            }
        }
    }

    fn count_begun(&mut self, heard: &BTreeMap<usize, Heard>, before: &Layout, layout: &Layout) {
        self.coverage.count(Path::RecoveryBegun);
        if before.is_joint() {
            self.coverage.count(Path::RecoveryBegunInAMove);
        }
        if heard.values().any(|heard| !heard.is_serving) {
            self.coverage.count(Path::RecoveryOvertaken);
        }
        self.note(format_args!("{:?} is to recover as {layout:?}", before.incarnation));
    }

    /// What each of them says, and what the person knows to be lost; `None` while somebody gives no answer who is not, or
    /// nothing has to be recovered.
    fn ask_all_that_are_left(&mut self) -> Option<(BTreeMap<usize, Heard>, Losses)> {
        let mut heard = BTreeMap::new();
        for n in 0..self.plan.machines() {
            let machine = &self.machines[n];
            let belongs = machine.disk.state.membership.is_some() && !self.is_past(n);
            if !belongs || machine.standing == Standing::Gone {
                continue;
            }
            let node = machine.node.as_ref().filter(|_| machine.standing == Standing::Running)?;
            let status = node.status(machine.now(self.now_ms));
            let is_serving = status.state == NodeState::Serving;
            let layout = status.layout.filter(|_| status.state != NodeState::Draining)?.clone();
            heard.insert(n, Heard { layout, is_serving, doubted: status.doubted_partitions });
        }
        let newest = heard.values().map(|heard| &heard.layout).max_by_key(|layout| layout.term())?.clone();
        if self.recovery.lost.is_empty() || !self.has_joined(&newest) {
            return None;
        }
        let asked: BTreeSet<_> = heard.keys().map(|n| self.machines[*n].id).collect();
        heard.retain(|n, _| newest.member(self.machines[*n].id).is_some_and(|member| !member.is_lost));
        let is_silent = |node: &NodeId| !asked.contains(node) && !newest.is_lost(*node);
        let nodes = newest.members.iter().map(|member| member.node).filter(is_silent).collect();
        // What is damaged of a salvaged partition goes by itself, mostly.
        let is_patient = self.rng.chance(90);
        let counts = |of: &Partition| !is_patient || !newest.salvaged.contains_key(of);
        let doubted = heard
            .iter()
            .map(|(n, heard)| (self.machines[*n].id, heard.doubted.iter().copied().filter(counts).collect()));
        let mut losses = Losses { nodes, doubted: doubted.collect() };
        let is_in_force =
            heard.values().all(|heard| heard.is_serving && heard.layout.incarnation == newest.incarnation);
        let is_new = losses.nodes.iter().any(|node| self.recovery.lost.contains(node));
        let is_hopeless = is_hopeless(&newest, &losses);
        // Else the rest can go on by itself, and give up by a vote who has died since.
        if is_in_force && !is_new && !is_hopeless {
            return None;
        }
        if !is_hopeless {
            losses.doubted.clear();
        }
        self.recovery.lost.extend(&losses.nodes);
        Some((heard, losses))
    }

    /// True if all members belong to the cluster by now. One that was admitted and has not joined learns from those who
    /// serve; if none does, it is of no use as what it is.
    fn has_joined(&mut self, newest: &Layout) -> bool {
        let has_not = |n: &usize| {
            let machine = &self.machines[*n];
            newest.member(machine.id).is_some_and(|member| !member.is_lost)
                && machine.disk.state.membership.is_none()
                && !self.is_past(*n)
                && machine.standing != Standing::Gone
        };
        let Some(n) = (0..self.plan.machines()).find(has_not) else { return true };
        if self.rng.chance(10) {
            self.end_for_good(n);
            self.after(100, Pending::Rejoin { machine: n });
        }
        false
    }

    fn hand_over_to_all(&mut self, machines: impl Iterator<Item = usize>, layout: &Layout) {
        for machine in machines {
            if self.rng.chance(85) {
                let wait = self.rng.between(0, 600);
                self.after(wait, Pending::HandOver { machine, layout: Box::new(layout.clone()) });
            }
        }
    }

    pub(crate) fn hand_over(&mut self, n: usize, layout: Box<Layout>) {
        if !self.is_running(n) {
            return;
        }
        if !self.is_healed && self.rng.chance(15) {
            self.machines[n].crash_after = Some(self.rng.between(0, 3));
        }
        let request = self.next_request();
        self.recovery.requests.insert(request);
        self.step(n, Event::Recover { request, layout });
    }

    pub(crate) fn note_handed_over(&mut self, n: usize, answer: &Answer) {
        self.note(format_args!("machine {n}: {answer:?}"));
        if let Answer::RecoveryRefused(_) = answer {
            self.coverage.count(Path::RecoveryRefused);
        }
    }

    /// The rest has gone on: those who were called lost and live come back, sooner or later.
    pub(crate) fn let_the_lost_return(&mut self) {
        for machine in 0..self.plan.machines() {
            if self.machines[machine].standing == Standing::Away {
                let wait = self.rng.between(1, 2_000);
                self.after(wait, Pending::Return { machine });
            }
        }
    }

    pub(crate) fn come_back(&mut self, n: usize) {
        if self.machines[n].standing == Standing::Away {
            self.machines[n].standing = Standing::Down;
            self.start(n);
        }
    }

    /// Everything is healed: nobody is away any more.
    pub(crate) fn bring_back(&mut self) {
        for n in 0..self.plan.machines() {
            // Before a recovery is in force, the person must not hear of it.
            let is_given_up = self.layout.is_lost(self.machines[n].id);
            if self.machines[n].standing == Standing::Away && !is_given_up {
                self.machines[n].standing = Standing::Gone;
            }
        }
    }

    /// In the end there are as many replicas as are wanted, or as there are machines.
    pub(crate) fn restoration(&self, layout: &Layout) -> Option<Change> {
        let members = self.able();
        if !self.plan.recovers()
            || self.recovery.is_over
            || self.is_salvaging()
            || self.is_whole(layout)
            || members.is_empty()
        {
            return None;
        }
        let replication_factor = self.plan.replication_factor.min(members.len());
        let members = members.iter().map(|n| self.member(*n, layout)).collect();
        Some(admitted_and_moved(layout, members, replication_factor))
    }

    fn able(&self) -> Vec<usize> {
        let is_able =
            |n: &usize| self.is_running(*n) && !self.is_left_behind(*n) && !self.machines[*n].is_stale;
        (0..self.plan.machines()).filter(is_able).collect()
    }

    /// True if each partition has all the replicas that it can have, none of them lost.
    fn is_whole(&self, layout: &Layout) -> bool {
        let wanted = self.plan.replication_factor.min(self.able().len());
        let left = |partition| {
            layout.ring().nodes(partition).into_iter().filter(|node| !layout.is_lost(*node)).count()
        };
        !layout.is_moving() && layout.partitions.all().all(|partition| left(partition) >= wanted)
    }

    /// True while data moves, or what was lost is not made up for.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.layout.is_moving()
            || self.plan.recovers() && (self.is_salvaging() || !self.is_whole(&self.layout))
    }

    /// Whoever runs, or is about to, and belongs to what was before a recovery. One that has accepted another attempt, and
    /// was called lost then, has as high a number, and one that knows none of today's members finds nobody to ask: the person
    /// ends these.
    pub(crate) fn left_behind(&self) -> Option<usize> {
        let number = self.layout.incarnation.number;
        let is_below = |n: usize| {
            let membership = self.machines[n].disk.state.membership.as_ref();
            membership.is_some_and(|(layout, _)| layout.incarnation.number < number)
        };
        let runs = |n: usize| self.is_running(n) || self.machines[n].standing == Standing::Away;
        let is_told = |n: usize| is_below(n) && self.knows_somebody(n);
        (0..self.plan.machines()).find(|n| runs(*n) && self.is_left_behind(*n) && is_told(*n))
    }

    /// True if a machine's layout has a member that is one today.
    fn knows_somebody(&self, n: usize) -> bool {
        let membership = self.machines[n].disk.state.membership.as_ref();
        let mut today = self.layout.members.iter().filter(|member| !member.is_lost);
        membership.is_some_and(|(layout, _)| today.any(|member| layout.member(member.node).is_some()))
    }

    /// Nobody is left who belongs to what was before.
    pub(crate) fn check_left_behind(&mut self) {
        self.recovery.is_over = true;
        if let Some(n) = self.left_behind() {
            let what = format!("machine {n} still takes part in what was before a recovery");
            self.violate(Violation::of_the_world(Checker::LostStaysLost, what));
        }
    }
}
