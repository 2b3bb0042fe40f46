//! A whole node: the state machine that a process or a simulation drives, `step(event, now) → effects`.
//!
//! It joins coordinator and replica, and adds what belongs to neither: membership, links to peers, the ceiling of
//! the clock, draining. Messages from this node to itself are delivered here, without a link. Nothing is served
//! before all members have accepted the layout, and no frame counts that does not fit it.

mod deciding;
mod epochs;
mod founding;
mod identity;
mod leaving;
mod links;
mod machines;
mod recovering;
mod saving;
mod status;
mod uncleared;

use std::collections::{BTreeMap, VecDeque};

use crate::budget::Budget;
use crate::clearing::Clearing;
pub use crate::context::Settings;
use crate::context::{Context, EffectIds};
use crate::coordinator::Coordinator;
pub use crate::counters::Counters;
use crate::effect::{
    Answer, ClientRequest, Effect, Event, Failure, FailureReason, Hint, Now, Operation, RequestId, SaveId,
};
use crate::giving::{Giving, READ_AT_ONCE_MAX};
pub use crate::hints::HintStatus;
use crate::hints::HintStore;
use crate::id::{Actor, Generation, Lineage, NodeId};
use crate::init::{Membership, Proposal};
use crate::layout::Layout;
use crate::message::{Header, Hello, Message, Refusal};
use crate::mutant::{Mutant, is_on};
use crate::pace::Paces;
use crate::paxos::Votes;
use crate::peers::{PeerIdentities, Peers};
use crate::replica::Replica;
use crate::stamp::{CEILING_STEP_MS, HybridClock, Stamp};
use crate::succession::{Evidence, Standing};
use crate::transfer::{Merges, Transfer};
use deciding::Proposing;
use epochs::{Ahead, Changing};
use leaving::Leaving;
use machines::Machines;
use saving::PendingSave;
pub use status::{DOUBTS_NAMED_MAX, NodeState, Status};

/// How often a member that has accepted tells those of which it does not know the same.
const ANNOUNCE_EVERY_MS: u64 = 500;

/// How long a starting node is kept from clients while it has not reached a quorum of each partition: long enough
/// for gossip and links after all nodes have started at once. Later it is ready whatever its peers do, since no
/// probe of one node may hang on the health of others.
pub const WARM_UP_MS_MAX: u64 = 10_000;

/// What a node knows when its process starts: all of it durable.
#[derive(Debug, Clone)]
pub struct Start {
    pub node: NodeId,
    pub actor: Actor,
    /// Already raised and synced for this start.
    pub generation: Generation,
    /// With a nonce that was drawn for this start.
    pub lineage: Lineage,
    /// No stamp with these or later milliseconds was issued before. It may lie ahead of the wall clock; the node
    /// then waits for the clock, at most [`CEILING_STEP_MS`], so that its first stamps are not ahead of others'.
    pub stamp_ceiling_ms: u64,
    /// The accepted layout, and whether all members are known to have accepted it.
    pub membership: Option<(Layout, bool)>,
    pub peers: PeerIdentities,
    /// What it has promised and voted for, of the layout that is to come.
    pub votes: Votes,
    pub merges: Merges,
    /// The generation in which this node was last in doubt, 0 if it never was.
    pub trusted_since: Generation,
    /// The hints that are kept.
    pub hints: Vec<Hint>,
    /// No record that is stored has a stamp above this one; `None` if nobody knows, and each write looks for itself.
    pub highest: Option<Stamp>,
    pub settings: Settings,
}

/// A first layout that is being made durable.
#[derive(Debug)]
struct Accepting {
    layout: Layout,
    requests: Vec<RequestId>,
}

#[derive(Debug)]
pub struct Node {
    me: NodeId,
    actor: Actor,
    generation: Generation,
    lineage: Lineage,
    settings: Settings,
    membership: Membership,
    accepting: Option<Accepting>,
    is_deciding: bool,
    peers: Peers,
    clock: HybridClock,
    stamps_from_ms: u64,
    /// Since when it does not matter for readiness whether quorums are reached: once they were, at once.
    warm_from_ms: u64,
    trusted_since: Generation,
    /// Until then no generation is raised again.
    raise_from_ms: u64,
    /// How long that was after the last one.
    raise_pause_ms: u64,
    is_set_aside: bool,
    paces: Paces,
    counters: Counters,
    budget: Budget,
    effect_ids: EffectIds,
    coordinator: Coordinator,
    replica: Replica,
    hints: HintStore,
    transfer: Transfer,
    giving: Giving,
    /// The layout that is being taken up.
    changing: Option<Changing>,
    /// What of other partitions is to go.
    leaving: Option<Leaving>,
    /// What could not be cleared, and is tried again from this moment on.
    clearing_again: Option<Clearing>,
    clear_again_at_ms: u64,
    /// What others have sent under layouts that are not in force here yet.
    ahead: Ahead,
    votes: Votes,
    proposing: Option<Proposing>,
    /// The round of the last ballot of this process.
    last_round: u64,
    /// What the members have said of themselves; what we say is not in it.
    evidence: Evidence,
    /// What we have said last, and when we look at it again.
    told_standing: (Standing, u64),
    saves: BTreeMap<SaveId, PendingSave>,
    next_save: u64,
    announce_at_ms: u64,
    draining: bool,
    messages: VecDeque<(NodeId, Message)>,
}

impl Node {
    pub fn new(start: Start, now: Now) -> Self {
        let Start {
            node: me,
            actor,
            generation,
            lineage,
            stamp_ceiling_ms,
            membership,
            peers,
            votes,
            merges,
            trusted_since,
            hints,
            highest,
            settings,
        } = start;
        let membership = match membership {
            None => Membership::Uninitialised,
            Some((layout, false)) => Membership::accepted(layout, me),
            Some((layout, true)) => Membership::decided(layout),
        };
        let wait_ms = stamp_ceiling_ms.saturating_sub(now.wall_ms).min(CEILING_STEP_MS);
        let wait_ms = if is_on(Mutant::StartsDoNotWaitForTheClock) { 0 } else { wait_ms };
        let mut node = Self {
            me,
            actor,
            generation,
            lineage,
            hints: HintStore::new(hints, &settings, now),
            transfer: Transfer::new(merges),
            giving: Giving::default(),
            changing: None,
            leaving: None,
            clearing_again: None,
            clear_again_at_ms: now.mono_ms,
            ahead: Ahead::default(),
            votes,
            proposing: None,
            last_round: 0,
            evidence: Evidence::new(),
            told_standing: (Standing::default(), now.mono_ms),
            budget: Budget::new(settings.background_bytes_per_s, now.mono_ms),
            settings,
            membership,
            accepting: None,
            is_deciding: false,
            peers: Peers::new(peers),
            clock: HybridClock::new(actor, stamp_ceiling_ms),
            stamps_from_ms: now.mono_ms + wait_ms,
            warm_from_ms: now.mono_ms + WARM_UP_MS_MAX,
            trusted_since,
            raise_from_ms: now.mono_ms,
            raise_pause_ms: 0,
            is_set_aside: false,
            paces: Paces::default(),
            counters: Counters::default(),
            effect_ids: EffectIds::default(),
            coordinator: Coordinator::new(generation),
            replica: Replica::new(highest),
            saves: BTreeMap::new(),
            next_save: 0,
            announce_at_ms: now.mono_ms,
            draining: false,
            messages: VecDeque::new(),
        };
        node.serve(now, &mut Vec::new(), |machines, context| {
            machines.hints.begin_epoch(context);
            machines.transfer.begin(context);
            for partition in machines.transfer.uncleared().clone() {
                machines.replica.doubt_partition(partition, context);
            }
        });
        node.begin_leaving(now);
        node
    }

    /// Handles one event and appends what is to be done about it.
    pub fn step(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        if self.is_set_aside {
            return self.step_aside(event, effects);
        }
        match event {
            Event::Client(request) => self.client(request, now, effects),
            Event::Init { request, layout } => self.init(request, layout, effects),
            Event::Propose { request, expected, layout } => {
                self.propose(request, (expected, &layout), now, effects);
            }
            Event::Recover { request, layout } => self.recover(request, *layout, now, effects),
            Event::LinkOffered { link, hello } => self.link_offered(link, hello, now, effects),
            Event::LinkClosed { link } => {
                self.forget_greeting(link);
                self.ahead.forget(link);
                if let Some(peer) = self.peers.disconnect(link) {
                    self.lose(&[(peer, false)], now, effects);
                }
            }
            Event::HelloRefused { peer, generation, refusal } => {
                self.hello_refused((peer, generation), refusal, effects);
            }
            Event::Frame { link, header, messages } => self.frame((link, header), messages, now, effects),
            Event::Loaded { load, record } => {
                self.serve(now, effects, |node, context| {
                    node.loaded(load, record, context);
                });
            }
            Event::Scanned { load, page } if !self.cleared_page(load, &page, now, effects) => {
                self.serve(now, effects, |node, context| node.scanned(load, page, context));
            }
            Event::Scanned { .. } => {}
            Event::Committed { commit, outcome } if !self.cleared(commit, outcome, now, effects) => {
                self.lend(now, effects, |node, context| {
                    if !node.hints.committed(commit, outcome, context) {
                        node.replica.committed(commit, outcome, context);
                    }
                });
                self.decide_if_all_have_accepted(effects);
            }
            Event::Committed { .. } => {}
            Event::Saved { save } => self.saved(save, now, effects),
            Event::DiskFull(full) => self.replica.set_disk_full(full),
            Event::Drain => self.draining = true,
            Event::Tick => self.tick(now, effects),
        }
        self.deliver(now, effects);
        self.go_on_changing(now, effects);
        self.deliver(now, effects);
        self.raise_ceiling(now, effects);
        self.raise_generation(now, effects);
        if self.warm_from_ms > now.mono_ms && self.is_warm() {
            self.warm_from_ms = now.mono_ms;
        }
    }

    /// When the node wants a `Tick`, in milliseconds of the monotonic clock.
    pub fn next_wakeup_ms(&self) -> Option<u64> {
        if self.is_set_aside {
            return None;
        }
        let announce = matches!(self.membership, Membership::Accepted { .. }).then_some(self.announce_at_ms);
        let stamps = self.coordinator.has_parked().then_some(self.stamps_from_ms);
        // A write that is parked for the disk, not for the clock, is woken by `Saved`, not by a tick.
        let stamps =
            stamps.filter(|_| self.saves.values().all(|save| !matches!(save, PendingSave::Ceiling(_))));
        let changing = self.changing.as_ref().and_then(Changing::next_wakeup_ms);
        let is_moving = |layout: &&Layout| layout.is_moving() || self.transfer.is_healing();
        let moving = self.membership.serving().filter(is_moving).and_then(|layout| {
            self.transfer.next_wakeup_ms(
                self.budget.ready_at_ms(),
                self.replica.is_disk_full(),
                (layout, self.me),
            )
        });
        let has_room = self.replica.pages_given() < READ_AT_ONCE_MAX;
        let giving = self.membership.serving().filter(|_| has_room);
        let giving = giving.and_then(|_| self.giving.next_wakeup_ms(self.budget.ready_at_ms()));
        let proposing = self.proposing.as_ref().map(Proposing::next_wakeup_ms);
        let raise = self.wants_generation().then_some(self.raise_from_ms);
        // Nothing is healed before this node serves.
        let heals = self.membership.serving().is_some() && !self.is_clearing();
        let heal = self.replica.doubts.next_due_ms().filter(|_| heals);
        let hints =
            self.membership.serving().and_then(|_| self.hints.next_wakeup_ms(&self.peers, &self.budget));
        let deadline = self.coordinator.next_deadline_ms();
        let (leaving, uncleared) = (self.leaving_wakeup_ms(), self.uncleared_wakeup_ms());
        let telling = self.telling_wakeup_ms();
        [
            announce, stamps, deadline, raise, heal, hints, changing, moving, giving, leaving, uncleared,
            proposing, telling,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What to say first on a connection to another member; `None` before this node has accepted a layout.
    pub fn hello(&self, to: NodeId) -> Option<Hello> {
        let layout = self.membership.layout().filter(|_| !self.is_set_aside)?;
        Some(Hello { header: self.header(layout, to), lineage: self.lineage.clone() })
    }

    /// The layout that this node has accepted.
    pub fn layout(&self) -> Option<&Layout> {
        self.membership.layout()
    }

    /// True while no request and no write is under way: a drain may end.
    pub fn is_idle(&self) -> bool {
        self.coordinator.under_way() == 0 && self.replica.under_way() == 0
    }

    fn header(&self, layout: &Layout, to: NodeId) -> Header {
        Header {
            cluster: layout.cluster,
            incarnation: layout.incarnation,
            epoch: layout.epoch,
            from: self.me,
            to,
            generation: self.generation,
        }
    }

    fn client(&mut self, request: ClientRequest, now: Now, effects: &mut Vec<Effect>) {
        let refusal = match self.membership.serving() {
            None => Some(FailureReason::NotInitialized),
            Some(_) if self.draining => Some(FailureReason::Draining),
            Some(layout)
                if self.is_busy(&request.operation, layout) && !is_on(Mutant::RequestsAreUnbounded) =>
            {
                Some(FailureReason::Overloaded)
            }
            Some(_) => None,
        };
        if let Some(reason) = refusal {
            let answer = Answer::Failed(Failure { reason, acks: 0, needed: 0 });
            return effects.push(Effect::Answer { request: request.id, answer });
        }
        self.serve(now, effects, |node, context| {
            node.coordinator.start(request, context);
        });
    }

    /// Too much is under way here for one more. Of writes, as many as leave the replicas no more than they take if
    /// all coordinators have as many: refused here, a write costs nobody else anything and was surely not applied.
    fn is_busy(&self, operation: &Operation, layout: &Layout) -> bool {
        let share = |of_replicas: usize| (of_replicas / layout.replication_factor).max(1);
        let (writes, bytes) = self.coordinator.writes_under_way();
        self.coordinator.under_way() >= self.settings.requests_max
            || operation.is_write()
                && (writes >= share(self.settings.writes_max)
                    || bytes >= share(self.settings.write_bytes_max))
    }

    fn message(&mut self, from: NodeId, message: Message, now: Now, effects: &mut Vec<Effect>) {
        if let Message::InitAccepted { digest, reply_wanted, decided } = message {
            if self.membership.note_accepted(from, digest, decided) {
                self.decide(effects);
            }
            if reply_wanted && let Some(message) = self.membership.announcement(from) {
                self.messages.push_back((from, message));
            }
            return;
        }
        let message = match message {
            Message::Layout { layout, identities } => {
                return self.learn_from(from, (*layout, identities), now, effects);
            }
            Message::Standing(standing) => return self.note_standing(from, standing),
            Message::Paxos { epoch, ballot, say } => {
                return self.paxos(from, (epoch, ballot, *say), now, effects);
            }
            message => message,
        };
        if self.membership.serving().is_none() {
            return self.refuse_uninitialized(from, message);
        }
        if self.is_about_to_change(&message) {
            return self.messages.extend(message.refused(Refusal::StaleEpoch).map(|answer| (from, answer)));
        }
        let mut heard = Vec::new();
        self.serve(now, effects, |node, context| {
            heard = node.handle(from, message, context);
        });
        if !heard.is_empty() {
            self.hear(from, &heard, now, effects);
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if matches!(self.membership, Membership::Accepted { .. }) && now.mono_ms >= self.announce_at_ms {
            self.announce_at_ms = now.mono_ms + ANNOUNCE_EVERY_MS;
            self.decide_if_all_have_accepted(effects);
            let connected: Vec<_> = self.peers.connected().map(|(peer, _)| peer).collect();
            for peer in connected {
                if let Some(message) = self.membership.announcement(peer) {
                    self.messages.push_back((peer, message));
                }
            }
        }
        self.serve(now, effects, |node, context| {
            node.coordinator.expire(context);
            node.hints.tick(context);
            node.give(context);
            if now.mono_ms >= context.stamps_from_ms {
                node.coordinator.unpark(context);
            }
        });
        self.go_on_clearing(now, effects);
        self.go_on_moving(now, effects);
        self.go_on_leaving(now, effects);
        self.tell_standing(now);
        self.go_on_clearing_again(now, effects);
        self.go_on_proposing(now, effects);
    }

    /// Some peers are no longer reached, or (`true`) known as a later generation.
    fn lose(&mut self, nodes: &[(NodeId, bool)], now: Now, effects: &mut Vec<Effect>) {
        let is_void = !is_on(Mutant::EarlierGenerationsAreEvidence);
        for (peer, _) in nodes.iter().filter(|(_, restarted)| *restarted && is_void) {
            self.evidence.remove(peer);
        }
        self.serve(now, effects, |node, context| {
            for (peer, restarted) in nodes {
                node.replica.doubts.lose(*peer, *restarted, context);
                node.hints.lost(*peer);
                node.transfer.lose(*peer, *restarted, now.mono_ms);
                node.giving.lose(*peer);
            }
            node.coordinator.lose(nodes, context);
        });
    }

    /// Delivers messages: those to ourselves at once, the others over their links.
    fn deliver(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some((to, message)) = self.messages.pop_front() {
            if to == self.me {
                self.message(to, message, now, effects);
            } else if let (Some(link), Some(layout)) = (self.peers.link(to), self.membership.layout()) {
                let header = self.header(layout, to);
                effects.push(Effect::Send { link, header, message });
            }
        }
    }

    /// How many requests and writes are under way for clients.
    fn busy(&self) -> usize {
        let all = self.coordinator.under_way() + self.replica.under_way();
        all.saturating_sub(self.transfer.storing() + self.replica.pages_given())
    }

    /// Lends coordinator and replica what they share. Does nothing on a node that does not serve: it has no requests.
    fn serve(
        &mut self,
        now: Now,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut Machines<'_>, &mut Context<'_>),
    ) {
        if self.membership.serving().is_some() {
            self.lend(now, effects, act);
        }
    }

    /// The same on a node that has accepted a layout: what was being committed when it accepted that of a recovery ends
    /// before it serves again.
    fn lend(
        &mut self,
        now: Now,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut Machines<'_>, &mut Context<'_>),
    ) {
        let busy = self.busy();
        self.budget.note(now.mono_ms, busy);
        let Some(layout) = self.membership.layout().filter(|_| !self.is_set_aside) else {
            return;
        };
        let mut context = Context {
            now,
            me: self.me,
            layout,
            settings: &self.settings,
            peers: &self.peers,
            evidence: &self.evidence,
            clock: &mut self.clock,
            generation: self.generation,
            trusted_since: self.trusted_since,
            actor: self.actor,
            paces: &mut self.paces,
            counters: &mut self.counters,
            budget: &mut self.budget,
            busy,
            ids: &mut self.effect_ids,
            stamps_from_ms: self.stamps_from_ms,
            messages: &mut self.messages,
            effects,
        };
        let mut machines = Machines {
            coordinator: &mut self.coordinator,
            replica: &mut self.replica,
            hints: &mut self.hints,
            transfer: &mut self.transfer,
            giving: &mut self.giving,
        };
        act(&mut machines, &mut context);
    }
}
