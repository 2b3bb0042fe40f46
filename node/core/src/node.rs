//! A whole node: the state machine that a process or a simulation drives, `step(event, now) → effects`.
//!
//! It joins coordinator and replica, and adds what belongs to neither: membership, links to peers, the ceiling of
//! the clock, draining. Messages from this node to itself are delivered here, without a link. Nothing is served
//! before all members have accepted the layout, and no frame counts that does not fit it.

use std::collections::{BTreeMap, VecDeque};

use crate::context::Context;
pub use crate::context::Settings;
use crate::coordinator::{Coordinator, Heard};
pub use crate::counters::Counters;
use crate::effect::{
    Alarm, Answer, ClientRequest, Effect, Event, Failure, FailureReason, Hint, InitRefusal, LinkId, Now,
    RequestId, SaveId, SavedState,
};
use crate::id::{Actor, Generation, NodeId, Nonce};
use crate::init::{Membership, Proposal};
use crate::layout::Layout;
use crate::message::{
    Header, Hello, Message, MintOutcome, Noted, ReadOutcome, Refusal, ScanOutcome, WriteOutcome,
};
use crate::peers::{Greeting, LinkRefusal, PeerIdentities, Peers};
use crate::quorum::Consistency;
use crate::replica::Replica;
use crate::stamp::{CEILING_STEP_MS, HybridClock, Stamp};

/// How often a member that has accepted tells those of which it does not know the same.
const ANNOUNCE_EVERY_MS: u64 = 500;

/// How long a starting node is kept from clients while it has not reached a quorum of each partition: long enough
/// for gossip and links after all nodes have started at once. Later it is ready whatever its peers do, since no
/// probe of one node may hang on the health of others.
pub const WARM_UP_MS_MAX: u64 = 10_000;

/// What a node knows when its process starts: all of it durable but the nonce.
#[derive(Debug, Clone)]
pub struct Start {
    pub node: NodeId,
    pub actor: Actor,
    /// Already raised and synced for this start.
    pub generation: Generation,
    /// Drawn for this start.
    pub nonce: Nonce,
    /// No stamp with these or later milliseconds was issued before. It may lie ahead of the wall clock; the node
    /// then waits for the clock, at most [`CEILING_STEP_MS`], so that its first stamps are not ahead of others'.
    pub stamp_ceiling_ms: u64,
    /// The accepted layout, and whether all members are known to have accepted it.
    pub membership: Option<(Layout, bool)>,
    pub peers: PeerIdentities,
    /// The generation in which this node was last in doubt, 0 if it never was.
    pub trusted_since: Generation,
    /// The hints that are kept.
    pub hints: Vec<Hint>,
    pub settings: Settings,
}

/// Where a node stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    Uninitialized,
    Accepted,
    Serving,
    Draining,
}

/// What a node knows of itself, for people and probes.
#[derive(Debug, Clone)]
pub struct Status<'a> {
    pub state: NodeState,
    /// True if this node serves requests now.
    pub ready: bool,
    pub layout: Option<&'a Layout>,
    pub connected: Vec<(NodeId, Generation)>,
    pub partitions_owned: usize,
    /// Partitions of which this node reaches a write quorum.
    pub partitions_available: usize,
    pub requests_under_way: usize,
    pub writes_under_way: usize,
    pub stamp_ceiling_ms: u64,
    /// The highest stamp that this node has issued or seen.
    pub latest_stamp: Stamp,
    pub counters: Counters,
}

#[derive(Debug)]
enum PendingSave {
    Ceiling(u64),
    Accepted,
    Decided,
    /// `link` is `None` once it was closed: the identity is kept all the same.
    Greeting {
        link: Option<LinkId>,
        hello: Hello,
    },
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
    nonce: Nonce,
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
    slow: BTreeMap<NodeId, u64>,
    counters: Counters,
    coordinator: Coordinator,
    replica: Replica,
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
            nonce,
            stamp_ceiling_ms,
            membership,
            peers,
            trusted_since,
            hints: _,
            settings,
        } = start;
        let membership = match membership {
            None => Membership::Uninitialised,
            Some((layout, false)) => Membership::accepted(layout, me),
            Some((layout, true)) => Membership::decided(layout),
        };
        let wait_ms = stamp_ceiling_ms.saturating_sub(now.wall_ms).min(CEILING_STEP_MS);
        Self {
            me,
            actor,
            generation,
            nonce,
            settings,
            membership,
            accepting: None,
            is_deciding: false,
            peers: Peers::new(peers),
            clock: HybridClock::new(actor, stamp_ceiling_ms),
            stamps_from_ms: now.mono_ms + wait_ms,
            warm_from_ms: now.mono_ms + WARM_UP_MS_MAX,
            trusted_since,
            slow: BTreeMap::new(),
            counters: Counters::default(),
            coordinator: Coordinator::new(generation),
            replica: Replica::default(),
            saves: BTreeMap::new(),
            next_save: 0,
            announce_at_ms: now.mono_ms,
            draining: false,
            messages: VecDeque::new(),
        }
    }

    /// Handles one event and appends what is to be done about it.
    pub fn step(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Client(request) => self.client(request, now, effects),
            Event::Init { request, layout } => self.init(request, layout, effects),
            Event::LinkOffered { link, hello } => self.link_offered(link, hello, now, effects),
            Event::LinkClosed { link } => {
                self.forget_greeting(link);
                if let Some(peer) = self.peers.disconnect(link) {
                    self.serve(now, effects, |node, context| {
                        node.coordinator.lose(peer, false, context);
                    });
                }
            }
            Event::Frame { link, header, messages } => self.frame((link, header), messages, now, effects),
            Event::Loaded { load, record } => {
                self.serve(now, effects, |node, context| {
                    node.replica.loaded(load, record, context);
                });
            }
            Event::Scanned { load, page } => {
                self.serve(now, effects, |node, context| {
                    node.replica.scanned(load, page, context);
                });
            }
            Event::Committed { commit, outcome } => {
                self.serve(now, effects, |node, context| {
                    node.replica.committed(commit, outcome, context);
                });
            }
            Event::Saved { save } => self.saved(save, now, effects),
            Event::DiskFull(full) => self.replica.set_disk_full(full),
            Event::Drain => self.draining = true,
            Event::Tick => self.tick(now, effects),
        }
        self.deliver(now, effects);
        self.raise_ceiling(now, effects);
        if self.warm_from_ms > now.mono_ms && self.is_warm() {
            self.warm_from_ms = now.mono_ms;
        }
    }

    /// When the node wants a `Tick`, in milliseconds of the monotonic clock.
    pub fn next_wakeup_ms(&self) -> Option<u64> {
        let announce = matches!(self.membership, Membership::Accepted { .. }).then_some(self.announce_at_ms);
        let stamps = self.coordinator.has_parked().then_some(self.stamps_from_ms);
        // A write that is parked for the disk, not for the clock, is woken by `Saved`, not by a tick.
        let stamps =
            stamps.filter(|_| self.saves.values().all(|save| !matches!(save, PendingSave::Ceiling(_))));
        [announce, stamps, self.coordinator.next_deadline_ms()].into_iter().flatten().min()
    }

    /// What to say first on a connection to another member; `None` before this node has accepted a layout.
    pub fn hello(&self, to: NodeId) -> Option<Hello> {
        let layout = self.membership.layout()?;
        Some(Hello { header: self.header(layout, to), nonce: self.nonce })
    }

    /// True while no request and no write is under way: a drain may end.
    pub fn is_idle(&self) -> bool {
        self.coordinator.under_way() == 0 && self.replica.under_way() == 0
    }

    pub fn status(&self, now: Now) -> Status<'_> {
        let layout = self.membership.layout();
        let state = match self.membership {
            Membership::Uninitialised => NodeState::Uninitialized,
            Membership::Accepted { .. } => NodeState::Accepted,
            Membership::Decided { .. } if self.draining => NodeState::Draining,
            Membership::Decided { .. } => NodeState::Serving,
        };
        Status {
            state,
            ready: state == NodeState::Serving && now.mono_ms >= self.stamps_from_ms.max(self.warm_from_ms),
            layout,
            connected: self.peers.connected().collect(),
            partitions_owned: layout.map_or(0, |layout| layout.owned(self.me)),
            partitions_available: self.membership.serving().map_or(0, |layout| self.available(layout)),
            requests_under_way: self.coordinator.under_way(),
            writes_under_way: self.replica.under_way(),
            stamp_ceiling_ms: self.clock.ceiling_ms(),
            latest_stamp: self.clock.latest(),
            counters: self.counters,
        }
    }

    /// How many partitions have a write quorum of replicas that this node reaches.
    fn available(&self, layout: &Layout) -> usize {
        let reachable = |node: &NodeId| *node == self.me || self.peers.is_connected(*node);
        let makes_quorum = |p| layout.replica_sets(p).satisfied(Consistency::Quorum, reachable);
        layout.partitions.all().filter(|p| makes_quorum(*p)).count()
    }

    fn is_warm(&self) -> bool {
        let all = |layout: &Layout| self.available(layout) == usize::from(layout.partitions.get());
        self.membership.serving().is_some_and(all)
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
            Some(_) if self.coordinator.under_way() >= self.settings.requests_max => {
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

    fn init(&mut self, request: RequestId, layout: Layout, effects: &mut Vec<Effect>) {
        let answer = |answer| Effect::Answer { request, answer };
        if let Some(accepting) = &mut self.accepting {
            if accepting.layout == layout {
                accepting.requests.push(request);
            } else {
                let refusal = InitRefusal::OtherCluster(accepting.layout.cluster);
                effects.push(answer(Answer::InitRefused(refusal)));
            }
            return;
        }
        match self.membership.judge(&layout, self.me, self.actor) {
            Proposal::AlreadyAccepted => effects.push(answer(Answer::InitAccepted)),
            Proposal::Refuse(refusal) => effects.push(answer(Answer::InitRefused(refusal))),
            Proposal::Accept => {
                self.accepting = Some(Accepting { layout: layout.clone(), requests: vec![request] });
                self.save(PendingSave::Accepted, SavedState::Layout { layout, decided: false }, effects);
            }
        }
    }

    fn link_offered(&mut self, link: LinkId, hello: Hello, now: Now, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.layout() else {
            return effects.push(Effect::RefuseLink { link, refusal: LinkRefusal::NotInitialized });
        };
        match self.peers.greet(&hello, layout, self.me) {
            Err(refusal) => effects.push(Effect::RefuseLink { link, refusal }),
            Ok(Greeting::Known) => self.accept_link(link, &hello, now, effects),
            Ok(Greeting::Newer) => {
                let state = SavedState::Peers(self.peers.identities().clone());
                self.save(PendingSave::Greeting { link: Some(link), hello }, state, effects);
            }
        }
    }

    /// A link that closes while its hello is being saved must not come into use afterwards: nobody would say that
    /// it is closed a second time.
    fn forget_greeting(&mut self, closed: LinkId) {
        for save in self.saves.values_mut() {
            if let PendingSave::Greeting { link, .. } = save
                && *link == Some(closed)
            {
                *link = None;
            }
        }
    }

    fn accept_link(&mut self, link: LinkId, hello: &Hello, now: Now, effects: &mut Vec<Effect>) {
        let peer = hello.header.from;
        let Some(ours) = self.hello(peer) else { return };
        let restarted = self.peers.has_restarted(&hello.header);
        let replaced = self.peers.connect(link, &hello.header);
        effects.push(Effect::AcceptLink { link, hello: ours });
        if let Some(link) = replaced {
            effects.push(Effect::CloseLink { link });
        }
        if replaced.is_some() || restarted {
            self.serve(now, effects, |node, context| {
                node.coordinator.lose(peer, restarted, context);
            });
        }
        if let Some(message) = self.membership.announcement(peer) {
            self.messages.push_back((peer, message));
        }
    }

    fn frame(
        &mut self,
        (link, header): (LinkId, Header),
        messages: Vec<Message>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(layout) = self.membership.layout() else {
            return;
        };
        if !self.peers.admits(link, &header, layout, self.me) {
            effects.push(Effect::CloseLink { link });
            if let Some(peer) = self.peers.disconnect(link) {
                self.serve(now, effects, |node, context| {
                    node.coordinator.lose(peer, false, context);
                });
            }
            return;
        }
        for message in messages {
            self.message(header.from, message, now, effects);
        }
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
        if self.membership.serving().is_none() {
            return self.refuse_uninitialized(from, message);
        }
        let mut heard = Vec::new();
        self.serve(now, effects, |node, context| {
            heard = node.handle(from, message, context);
        });
        for (peer, generation) in heard {
            self.counters.generations_heard += 1;
            self.peers.hear(peer, generation);
            self.serve(now, effects, |node, context| node.coordinator.lose(peer, true, context));
        }
    }

    /// Another member serves already, this one does not know yet that all have accepted.
    fn refuse_uninitialized(&mut self, from: NodeId, message: Message) {
        let refusal = Refusal::NotInitialized;
        let noted = Noted::new();
        let answer = match message {
            Message::Write(write) => {
                Message::WriteAnswer { call: write.call, outcome: WriteOutcome::Refused(refusal), noted }
            }
            Message::Mint(mint) => {
                Message::MintAnswer { call: mint.call, outcome: MintOutcome::Refused(refusal), noted }
            }
            Message::Read { call, .. } => {
                Message::ReadAnswer { call, outcome: ReadOutcome::Refused(refusal), noted }
            }
            Message::Scan { call, .. } => {
                Message::ScanAnswer { call, outcome: ScanOutcome::Refused(refusal), noted }
            }
            Message::WriteAnswer { .. }
            | Message::MintAnswer { .. }
            | Message::ReadAnswer { .. }
            | Message::ScanAnswer { .. }
            | Message::Hint { .. }
            | Message::InitAccepted { .. } => return,
        };
        self.messages.push_back((from, answer));
    }

    /// All members have accepted: makes that durable, then serves.
    fn decide(&mut self, effects: &mut Vec<Effect>) {
        if let Membership::Accepted { layout, .. } = &self.membership
            && !self.is_deciding
        {
            self.is_deciding = true;
            let state = SavedState::Layout { layout: layout.clone(), decided: true };
            self.save(PendingSave::Decided, state, effects);
        }
    }

    fn saved(&mut self, save: SaveId, now: Now, effects: &mut Vec<Effect>) {
        match self.saves.remove(&save) {
            None => {}
            Some(PendingSave::Ceiling(ceiling_ms)) => {
                self.clock.raise_ceiling(ceiling_ms);
                self.serve(now, effects, |node, context| node.coordinator.unpark(context));
            }
            Some(PendingSave::Accepted) => self.accepted(effects),
            Some(PendingSave::Decided) => {
                if let Membership::Accepted { layout, .. } =
                    std::mem::replace(&mut self.membership, Membership::Uninitialised)
                {
                    self.membership = Membership::decided(layout);
                }
            }
            Some(PendingSave::Greeting { link, hello }) => {
                self.peers.make_durable(&hello);
                let Some(link) = link else { return };
                if self.peers.is_current(&hello) {
                    self.accept_link(link, &hello, now, effects);
                } else {
                    effects.push(Effect::RefuseLink { link, refusal: LinkRefusal::StaleGeneration });
                }
            }
        }
    }

    fn accepted(&mut self, effects: &mut Vec<Effect>) {
        let Some(Accepting { layout, requests }) = self.accepting.take() else {
            return;
        };
        self.membership = Membership::accepted(layout, self.me);
        let answers =
            requests.into_iter().map(|request| Effect::Answer { request, answer: Answer::InitAccepted });
        effects.extend(answers);
        if let Membership::Accepted { digest, .. } = self.membership
            && self.membership.note_accepted(self.me, digest, false)
        {
            self.decide(effects);
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if matches!(self.membership, Membership::Accepted { .. }) && now.mono_ms >= self.announce_at_ms {
            self.announce_at_ms = now.mono_ms + ANNOUNCE_EVERY_MS;
            let connected: Vec<_> = self.peers.connected().map(|(peer, _)| peer).collect();
            for peer in connected {
                if let Some(message) = self.membership.announcement(peer) {
                    self.messages.push_back((peer, message));
                }
            }
        }
        self.serve(now, effects, |node, context| {
            node.coordinator.expire(context);
            if now.mono_ms >= context.stamps_from_ms {
                node.coordinator.unpark(context);
            }
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

    /// Asks for a higher ceiling when writes are about to need one: an idle node writes nothing.
    fn raise_ceiling(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.coordinator.has_parked() && !self.coordinator.takes_stamps() {
            return;
        }
        if let Some(ceiling_ms) = self.clock.wanted_ceiling(now.wall_ms) {
            self.save(PendingSave::Ceiling(ceiling_ms), SavedState::StampCeiling(ceiling_ms), effects);
        }
    }

    fn save(&mut self, pending: PendingSave, state: SavedState, effects: &mut Vec<Effect>) {
        let save = SaveId(self.next_save);
        self.next_save += 1;
        self.saves.insert(save, pending);
        effects.push(Effect::Save { save, state });
    }

    /// Lends coordinator and replica what they share. Does nothing on a node that does not serve: it has no
    /// requests, and none of its commits is under way.
    fn serve(
        &mut self,
        now: Now,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut Machines<'_>, &mut Context<'_>),
    ) {
        let Some(layout) = self.membership.serving() else {
            return;
        };
        let mut context = Context {
            now,
            me: self.me,
            layout,
            settings: &self.settings,
            peers: &self.peers,
            clock: &mut self.clock,
            generation: self.generation,
            trusted_since: self.trusted_since,
            actor: self.actor,
            slow: &mut self.slow,
            counters: &mut self.counters,
            stamps_from_ms: self.stamps_from_ms,
            messages: &mut self.messages,
            effects,
        };
        let mut machines = Machines { coordinator: &mut self.coordinator, replica: &mut self.replica };
        act(&mut machines, &mut context);
    }
}

struct Machines<'a> {
    coordinator: &'a mut Coordinator,
    replica: &'a mut Replica,
}

impl Machines<'_> {
    /// Returns what is news in an answer: nothing was concluded from it then, before that is taken in.
    fn handle(&mut self, from: NodeId, message: Message, context: &mut Context<'_>) -> Heard {
        match message {
            Message::Write(write) => self.replica.write(from, write, context),
            Message::Mint(mint) => self.replica.mint(from, mint, context),
            Message::Read { call, key, want } => self.replica.read(from, call, (key, want), context),
            Message::Scan { call, range } => self.replica.scan(from, call, range, context),
            Message::WriteAnswer { call, outcome, noted } => {
                return self.coordinator.write_answered(from, call, (outcome, noted), context);
            }
            Message::MintAnswer { call, outcome, noted } => {
                return self.coordinator.mint_answered(from, call, (outcome, noted), context);
            }
            Message::ReadAnswer { call, outcome, noted } => {
                return self.coordinator.read_answered(from, call, (outcome, noted), context);
            }
            Message::ScanAnswer { call, outcome, noted } => {
                return self.coordinator.scan_answered(from, call, (outcome, noted), context);
            }
            Message::Hint { .. } | Message::InitAccepted { .. } => {}
        }
        Vec::new()
    }
}

/// Says of a refused link what its dialler has to know about itself.
pub fn alarm_of(refusal: LinkRefusal, peer: NodeId) -> Option<Alarm> {
    (refusal == LinkRefusal::StaleGeneration).then_some(Alarm::StaleGeneration { peer })
}
