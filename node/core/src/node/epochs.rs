//! How a node takes up the layouts that follow the first: each is fenced on disk before anything counts under it.
//!
//! A decided layout comes from whoever has it. First this node clears what it holds from before it became a replica of
//! some partition; then the layout is made durable; then all that was under way begins from nothing under it. What
//! others send under a layout that is not in force here yet waits, what they send under an earlier one is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Node, PendingSave};
use crate::clearing::Clearing;
use crate::effect::{
    Alarm, Answer, CommitId, Effect, LinkId, LoadId, NoPage, NotCommitted, Now, RequestId, SavedState,
};
use crate::id::{ClusterId, Epoch, Generation, NodeId, Nonce};
use crate::init::Membership;
use crate::layout::{Layout, Member};
use crate::message::{Header, Message, Mint, Page, Refusal, Write};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::quorum::Durability;
use crate::recovery::RecoveryRefusal;
use crate::succession::{Standing, Step, check_gate};

/// How many messages wait for a layout to be taken up; requests beyond are refused, and so are those that would write more
/// than writes under way may.
const AHEAD_MAX: usize = 65_536;
/// How often a node looks at what it has to say of itself while data moves.
const STANDING_EVERY_MS: u64 = 200;

/// A layout on its way into force.
#[derive(Debug)]
pub(super) struct Changing {
    layout: Layout,
    /// Nothing may be left of these from before: what is asked of them is refused until the layout is in force.
    cleared: BTreeSet<Partition>,
    stage: Stage,
    /// Nobody has decided on it: a person wants it accepted, and waits for that.
    recovery: Option<RequestId>,
}

#[derive(Debug)]
enum Stage {
    /// Until nothing is being written any more; then this is cleared.
    Settling(Clearing),
    Clearing(Clearing),
    Saving,
}

impl Changing {
    /// A layout that is to be taken up once nothing is being written, and what this node holds from before it became a
    /// replica of some partitions is gone.
    pub(super) fn new(layout: Layout, partitions: Vec<Partition>, recovery: Option<RequestId>) -> Self {
        let cleared = partitions.iter().copied().collect();
        Self { layout, cleared, stage: Stage::Settling(Clearing::new(partitions)), recovery }
    }

    pub(super) fn cluster(&self) -> ClusterId {
        self.layout.cluster
    }

    pub(super) fn next_wakeup_ms(&self) -> Option<u64> {
        match &self.stage {
            Stage::Clearing(clearing) => clearing.next_wakeup_ms(),
            Stage::Settling(_) | Stage::Saving => None,
        }
    }
}

/// What others have sent under later layouts than ours, in the order of each link.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    frames: VecDeque<(LinkId, Header, Vec<Message>)>,
    messages: usize,
    /// Of what is to be written.
    bytes: usize,
}

impl Ahead {
    pub(super) fn forget(&mut self, closed: LinkId) {
        self.frames.retain(|(link, ..)| *link != closed);
        self.messages = self.frames.iter().map(|(.., messages)| messages.len()).sum();
        self.bytes = self.frames.iter().map(|(.., messages)| bytes_of(messages)).sum();
    }

    /// Keeps a frame, unless that were more than `bytes_max` or [`AHEAD_MAX`] allow.
    fn keep(
        &mut self,
        (link, header): (LinkId, Header),
        messages: Vec<Message>,
        bytes_max: usize,
    ) -> Result<(), Vec<Message>> {
        let bytes = bytes_of(&messages);
        if self.messages + messages.len() > AHEAD_MAX || self.bytes + bytes > bytes_max {
            return Err(messages);
        }
        self.messages += messages.len();
        self.bytes += bytes;
        self.frames.push_back((link, header, messages));
        Ok(())
    }
}

/// What messages take up beside their frames.
fn bytes_of(messages: &[Message]) -> usize {
    let bytes = |message: &Message| match message {
        Message::Write(Write { key, record, .. }) => key.encoded().len() + record.value_len(),
        Message::Mint(Mint { key, change, .. }) => {
            key.encoded().len() + change.value.as_ref().map_or(0, bytes::Bytes::len)
        }
        _ => 0,
    };
    messages.iter().map(bytes).sum()
}

impl Node {
    /// The epoch of the layout that this node has accepted; 0 without one.
    pub(super) fn epoch(&self) -> Epoch {
        self.membership.layout().map_or(Epoch(0), |layout| layout.epoch)
    }

    /// Handles the messages of a frame that was admitted, as far as they are of our epoch.
    pub(super) fn sort_out(
        &mut self,
        (link, header): (LinkId, Header),
        messages: Vec<Message>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let (of_layouts, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(Message::is_of_layouts);
        for message in of_layouts {
            self.message(header.from, message, now, effects);
        }
        if others.is_empty() {
            return;
        }
        let mut others = others;
        if header.epoch > self.epoch() && !is_on(Mutant::LaterEpochsAreNotAwaited) {
            match self.ahead.keep((link, header), others, self.settings.write_bytes_max) {
                Ok(()) => {
                    self.counters.frames_ahead += 1;
                    return;
                }
                Err(too_many) => others = too_many,
            }
        }
        let is_of_now = header.epoch == self.epoch()
            || header.epoch < self.epoch() && is_on(Mutant::EarlierEpochsAreServed)
            || header.epoch > self.epoch() && is_on(Mutant::LaterEpochsAreNotAwaited);
        for message in others {
            if is_of_now {
                self.message(header.from, message, now, effects);
            } else if let Message::MintAnswer { call, outcome, .. } = message {
                // What its sender has noted is of other replicas than those of our layout.
                let message = Message::MintAnswer { call, outcome, noted: Vec::new() };
                self.message(header.from, message, now, effects);
            } else if let Some(answer) = message.refused(Refusal::StaleEpoch) {
                self.counters.stale_requests += 1;
                self.messages.push_back((header.from, answer));
            }
        }
    }

    /// What is asked of a partition of which nothing may be left when the layout that is on its way is in force.
    pub(super) fn is_about_to_change(&self, message: &Message) -> bool {
        self.changing.as_ref().is_some_and(|changing| {
            let partition = message.asks_of(changing.layout.partitions);
            partition.is_some_and(|partition| changing.cleared.contains(&partition))
        })
    }

    pub(super) fn is_clearing(&self) -> bool {
        self.changing.as_ref().is_some_and(|changing| !changing.cleared.is_empty())
    }

    /// A link is up: the other side is told what it may not know.
    pub(super) fn greet_with_layout(&mut self, peer: NodeId, their_epoch: Epoch) {
        let Some(layout) = self.membership.serving() else { return };
        if their_epoch < layout.epoch {
            let message = self.layout_message(layout);
            self.messages.push_back((peer, message));
        }
        if layout.epoch > Epoch(1) {
            self.say_standing(peer);
        }
    }

    /// A decided layout, for somebody who may not have it.
    pub(super) fn layout_message(&self, layout: &Layout) -> Message {
        let identity = |member: &Member| match member.node == self.me {
            true => (self.generation, self.lineage.present()),
            false => self.peers.noted_identity(member.node).unwrap_or_default(),
        };
        let identities = layout.members.iter().map(identity).collect();
        Message::Layout { layout: Box::new(layout.clone()), identities }
    }

    /// Somebody has a decided layout. A node that belongs to no cluster has met none of the members, and would take a
    /// copy of one's disk for it: before it joins, it takes over whom the sender knows.
    pub(super) fn learn_from(
        &mut self,
        from: NodeId,
        (layout, identities): (Layout, Vec<(Generation, Nonce)>),
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let has_it = self.membership.serving().is_some_and(|ours| ours.term() == layout.term());
        if has_it && !is_on(Mutant::TheMisheardAreNotTold) {
            // It has heard something older last, or too little to go on.
            return self.say_standing(from);
        }
        let belongs_to_none = self.membership.layout().is_none() && self.changing.is_none();
        if !belongs_to_none || !self.is_news(&layout) || is_on(Mutant::JoinersHearOfNobody) {
            return self.learn(layout, now, effects);
        }
        let members = layout.members.iter().map(|member| member.node);
        let is_known = |(node, (generation, _)): &(NodeId, (Generation, Nonce))| {
            *node != self.me && *node != from && *generation > Generation(0)
        };
        let known = members.zip(identities).filter(is_known).collect();
        let others = self.peers.adopt(&known);
        for node in others {
            self.refuse_greeting(node, effects);
            if let Some(link) = self.peers.link(node) {
                self.peers.disconnect(link);
                effects.push(Effect::CloseLink { link });
            }
        }
        let state = SavedState::Peers(self.peers.identities().clone());
        self.save(PendingSave::Joining { layout, known }, state, effects);
    }

    /// True for a layout that this node may follow from where it is, if it is decided.
    fn is_news(&self, layout: &Layout) -> bool {
        match self.membership.layout() {
            Some(ours) => {
                let is_of_cluster = ours.cluster == layout.cluster || is_on(Mutant::OtherClustersCount);
                is_of_cluster && ours.incarnation == layout.incarnation && layout.epoch > self.epoch()
            }
            // Whoever belongs to no cluster joins the first that names it, under its actor.
            None => layout.member(self.me).is_some_and(|member| member.actor == self.actor),
        }
    }

    pub(super) fn learn(&mut self, layout: Layout, now: Now, effects: &mut Vec<Effect>) {
        // It was a member before it heard of that, and will never be one again.
        let is_unaware = self.membership.layout().is_none() && layout.departed.contains(&self.me);
        if is_unaware && !is_on(Mutant::TheUnawareWait) {
            return self.set_aside(Alarm::Departed { epoch: layout.epoch }, effects);
        }
        let is_newest = self.changing.as_ref().is_none_or(|changing| changing.layout.epoch < layout.epoch);
        if !self.is_news(&layout) || !is_newest || self.accepting.is_some() {
            return;
        }
        let is_ours = match layout.member(self.me) {
            Some(member) => member.actor == self.actor && (!member.is_lost || is_on(Mutant::TheLostGoOn)),
            None => is_on(Mutant::TheDepartedGoOn),
        };
        if !is_ours {
            return self.set_aside(Alarm::Departed { epoch: layout.epoch }, effects);
        }
        // One that is being saved is: the next comes when that is in force, from those who hear that it is.
        if self.changing.as_ref().is_some_and(|changing| matches!(changing.stage, Stage::Saving)) {
            return;
        }
        self.change(layout, None, now, effects);
    }

    /// Begins to take up a layout.
    pub(super) fn change(
        &mut self,
        layout: Layout,
        recovery: Option<RequestId>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let partitions = self.to_be_cleared(&layout);
        if let Some(Changing { recovery: Some(request), .. }) = &self.changing {
            let answer = Answer::RecoveryRefused(RecoveryRefusal::Overtaken(layout.epoch));
            effects.push(Effect::Answer { request: *request, answer });
        }
        self.changing = Some(Changing::new(layout, partitions, recovery));
        // What is being dropped of other partitions comes before anything that is done under that layout.
        self.leaving = None;
        self.clearing_again = None;
        self.serve(now, effects, |node, context| node.replica.doubts.stop_asking(context));
    }

    /// The partitions of which this node becomes a replica with this layout, or has become one without hearing of it.
    pub(super) fn to_be_cleared(&self, layout: &Layout) -> Vec<Partition> {
        // A node without a layout has never been sent anything.
        let Some(ours) = self.membership.layout() else { return Vec::new() };
        let is_newer = |partition: &Partition| {
            let Some(since) = layout.since(*partition, self.me) else { return false };
            // An attempt at a recovery that came to nothing may have taken the epoch of what others decided meanwhile.
            let is_unheard_of = ours.since(*partition, self.me) != Some(since);
            let is_source = layout.salvaged.get(partition).is_some_and(|sources| sources.contains(&self.me));
            since > ours.epoch || is_unheard_of && !is_source
        };
        let is_newer =
            |partition: &Partition| is_newer(partition) && !is_on(Mutant::RecordsOutliveMembership);
        layout.partitions.all().filter(is_newer).collect()
    }

    /// Takes the next step towards the layout that is on its way.
    pub(super) fn go_on_changing(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(Changing { layout, cleared, mut stage, recovery }) = self.changing.take() else { return };
        if let Stage::Settling(clearing) = stage {
            let is_cleared = |key: &RecordKey| cleared.contains(&key.partition(layout.partitions));
            // A layout that others have decided on since brings a recovery into force: see `decide`.
            let is_recovering = recovery.is_none() && matches!(self.membership, Membership::Accepted { .. });
            let has_settled = match is_recovering && !is_on(Mutant::InForceInMidCommit) {
                true => self.replica.has_settled(|_| true),
                false => {
                    clearing.is_done()
                        || self.replica.has_settled(is_cleared)
                        || is_on(Mutant::TakenUpInMidWrite)
                }
            };
            stage = if has_settled { Stage::Clearing(clearing) } else { Stage::Settling(clearing) };
        }
        if let Stage::Clearing(clearing) = &stage
            && clearing.is_done()
        {
            self.counters.records_cleared += clearing.cleared();
            // On disk before the layout is: nothing of these counts under it.
            if let Some(merges) = self.transfer.note_uncleared(&cleared, clearing.unreadable()) {
                self.save_merges(merges, Vec::new(), effects);
            }
            let state = SavedState::Layout { layout: layout.clone(), decided: recovery.is_none() };
            self.save(PendingSave::Layout, state, effects);
            stage = Stage::Saving;
        }
        let is_early = is_on(Mutant::FencedBeforeItIsSaved)
            || is_on(Mutant::AcceptedBeforeItIsSaved) && recovery.is_some();
        let is_early = is_early && matches!(stage, Stage::Saving);
        self.changing = Some(Changing { layout, cleared, stage, recovery });
        if is_early {
            self.take_up(now, effects);
        }
    }

    /// Reads the next page of what is to be cleared. One in a tick: what comes in between has its turn.
    pub(super) fn go_on_clearing(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let Some(Changing { stage: Stage::Clearing(clearing), .. }) = &mut self.changing {
            clearing.go_on(now.mono_ms, &mut self.effect_ids, effects);
        }
    }

    /// True if the page was read to be cleared.
    pub(super) fn cleared_page(
        &mut self,
        load: LoadId,
        page: &Result<Page, NoPage>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let ids = &mut self.effect_ids;
        if let Some(Changing { stage: Stage::Clearing(clearing), .. }) = &mut self.changing
            && clearing.scanned(load, page, (now.mono_ms, ids), effects)
        {
            return true;
        }
        let ids = &mut self.effect_ids;
        if let Some(clearing) = &mut self.clearing_again
            && clearing.scanned(load, page, (now.mono_ms, ids), effects)
        {
            self.note_cleared_again(now, effects);
            return true;
        }
        let ids = &mut self.effect_ids;
        let Some(left) = self.leaving.as_mut() else { return false };
        let is_ours = left.clearing.scanned(load, page, (now.mono_ms, ids), effects);
        self.note_left();
        is_ours
    }

    /// True if the commit has cleared something.
    pub(super) fn cleared(
        &mut self,
        commit: CommitId,
        outcome: Result<Durability, NotCommitted>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if let Some(Changing { stage: Stage::Clearing(clearing), .. }) = &mut self.changing
            && clearing.committed(commit, outcome, now.mono_ms)
        {
            return true;
        }
        if let Some(clearing) = &mut self.clearing_again
            && clearing.committed(commit, outcome, now.mono_ms)
        {
            self.note_cleared_again(now, effects);
            return true;
        }
        let Some(left) = self.leaving.as_mut() else { return false };
        let is_ours = left.clearing.committed(commit, outcome, now.mono_ms);
        self.note_left();
        is_ours
    }

    /// The layout is on disk: from now on it is the one that this node belongs to.
    pub(super) fn take_up(&mut self, now: Now, effects: &mut Vec<Effect>) {
        match self.changing.take() {
            Some(Changing { layout, recovery: Some(request), .. }) => {
                self.accept_recovery(request, layout, now, effects);
            }
            Some(Changing { layout, recovery: None, .. }) => self.begin(layout, now, effects),
            None => {}
        }
    }

    /// From now on, this layout is in force here.
    pub(super) fn put_in_force(&mut self, layout: Layout, now: Now, effects: &mut Vec<Effect>) {
        self.membership = Membership::decided(layout);
        self.serve(now, effects, |node, context| {
            node.replica.begin_epoch(context);
            node.replica.doubts.begin_epoch(context);
            node.hints.begin_epoch(context);
            node.transfer.begin(context);
            node.giving.begin_epoch();
            for partition in node.transfer.uncleared().clone() {
                node.replica.doubt_partition(partition, context);
            }
            let doubts = &node.replica.doubts;
            if !is_on(Mutant::DoubtsAreMergedAtOnce) {
                doubts.covered(0).for_each(|(partition, _)| node.transfer.forget(partition, context));
            }
            doubts.healing().for_each(|partition| node.transfer.heal(partition));
        });
    }

    pub(super) fn begin(&mut self, layout: Layout, now: Now, effects: &mut Vec<Effect>) {
        let epoch = layout.epoch;
        self.counters.epochs_taken_up += 1;
        self.put_in_force(layout, now, effects);
        self.begin_leaving(now);
        self.told_standing = (self.standing(), now.mono_ms + STANDING_EVERY_MS);
        // Before anything that is sent under it, on each link.
        let peers: Vec<_> = self.peers.connected().map(|(peer, _)| peer).collect();
        for peer in peers {
            let known = self.evidence.get(&peer).map_or(Epoch(0), |standing| standing.fence);
            self.greet_with_layout(peer, known);
        }
        self.serve(now, effects, |node, context| node.coordinator.reissue(context));
        self.deliver(now, effects);
        self.concluded(effects);
        for (link, header, messages) in std::mem::take(&mut self.ahead).frames {
            if header.epoch > epoch {
                // It had room before.
                let _ = self.ahead.keep((link, header), messages, usize::MAX);
            } else {
                self.sort_out((link, header), messages, now, effects);
            }
        }
    }

    /// What this node has to say of itself.
    pub(super) fn standing(&self) -> Standing {
        let Some(layout) = self.membership.serving() else { return Standing::default() };
        let mut doubted = self.replica.doubts.partitions(layout.partitions);
        doubted.retain(|partition| layout.is_replica(*partition, self.me));
        let mut whole = self.transfer.merged(layout, self.me);
        if !is_on(Mutant::TheDoubtfulAreWhole) {
            whole.retain(|partition| !doubted.contains(partition));
        }
        let clears = self.drops_what_it_left(layout);
        Standing { fence: layout.epoch, phase: layout.phase_since, whole, clears, doubted }
    }

    /// A member has said something of itself. One that is behind has missed a layout.
    pub(super) fn note_standing(&mut self, from: NodeId, standing: Standing) {
        let fence = standing.fence;
        self.evidence.insert(from, standing);
        self.look_at_what_left();
        if let Some(layout) = self.membership.serving().filter(|layout| layout.epoch > fence) {
            let message = self.layout_message(layout);
            self.messages.push_back((from, message));
        }
    }

    /// Takes over what others hold.
    pub(super) fn go_on_moving(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let is_moving = self.membership.serving().is_some_and(Layout::is_moving);
        if !is_moving && !self.transfer.is_healing() {
            return;
        }
        let mut merges = None;
        self.serve(now, effects, |node, context| {
            let doubts = &node.replica.doubts;
            let count = context.layout.partitions;
            let of = (|| doubts.partitions_of_keys(count), node.replica.is_disk_full());
            merges = node.transfer.tend(|| node.coordinator.next_number(), of, context);
        });
        if let Some(merges) = merges {
            self.save_merges(merges, Vec::new(), effects);
        }
    }

    /// When others are to hear what has become of us, if anything may have.
    pub(super) fn telling_wakeup_ms(&self) -> Option<u64> {
        let layout = self.membership.serving()?;
        let (told, at_ms) = &self.told_standing;
        let is_told_of = told.clears || !told.doubted.is_empty();
        let may_change = layout.is_moving() || self.leaving.is_some() || !self.replica.doubts.is_empty();
        (may_change || is_told_of).then_some(*at_ms)
    }

    /// Tells how far this node has come.
    pub(super) fn tell_standing(&mut self, now: Now) {
        if self.telling_wakeup_ms().is_none_or(|at_ms| at_ms > now.mono_ms) {
            return;
        }
        let standing = self.standing();
        if standing != self.told_standing.0 {
            self.tell_all(standing);
        }
        self.told_standing.1 = now.mono_ms + STANDING_EVERY_MS;
    }

    /// To one peer, or to all if it is news: or that one alone would have heard of it, and nobody would tell it that this is
    /// so no longer.
    fn say_standing(&mut self, to: NodeId) {
        let standing = self.standing();
        if standing == self.told_standing.0 || is_on(Mutant::GreetingsAreNotTold) {
            self.messages.push_back((to, Message::Standing(standing)));
        } else {
            self.tell_all(standing);
        }
    }

    fn tell_all(&mut self, standing: Standing) {
        let peers = self.peers.connected().map(|(peer, _)| (peer, Message::Standing(standing.clone())));
        self.messages.extend(peers);
        self.told_standing.0 = standing;
    }

    /// What is known of the members, ourselves included.
    pub(super) fn known_standings(&self) -> crate::succession::Evidence {
        let mut evidence = self.evidence.clone();
        evidence.insert(self.me, self.standing());
        evidence
    }

    pub(super) fn fences(&self) -> BTreeMap<NodeId, Epoch> {
        let Some(layout) = self.membership.serving() else { return BTreeMap::new() };
        let ours = (self.me, layout.epoch);
        let heard = self.evidence.iter().map(|(node, standing)| (*node, standing.fence));
        // The first layout was accepted by all before it was in force.
        let first =
            layout.members.iter().map(|member| (member.node, Epoch(1))).filter(|_| layout.epoch == Epoch(1));
        first.chain(heard).chain([ours]).filter(|(node, _)| layout.member(*node).is_some()).collect()
    }

    pub(super) fn move_waits_for(&self) -> Option<String> {
        let layout = self.membership.serving().filter(|layout| layout.is_moving())?;
        check_gate(layout, Step::Finish, &self.known_standings()).err().map(|error| error.to_string())
    }
}
