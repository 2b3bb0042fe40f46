//! The state machines of a node together: which of them a message or a record is for.

use crate::context::Context;
use crate::coordinator::{Coordinator, Heard, news_in};
use crate::effect::{Damaged, LoadId, NoPage};
use crate::giving::{Giving, READ_AT_ONCE_MAX, Wanted};
use crate::hints::HintStore;
use crate::id::NodeId;
use crate::message::{Message, Page, Refusal};
use crate::mutant::{Mutant, is_on};
use crate::record::Record;
use crate::replica::Replica;
use crate::transfer::{Holding, Transfer};

pub(super) struct Machines<'a> {
    pub(super) coordinator: &'a mut Coordinator,
    pub(super) replica: &'a mut Replica,
    pub(super) hints: &'a mut HintStore,
    pub(super) transfer: &'a mut Transfer,
    pub(super) giving: &'a mut Giving,
}

impl Machines<'_> {
    pub(super) fn loaded(
        &mut self,
        load: LoadId,
        record: Result<Option<Record>, Damaged>,
        context: &mut Context<'_>,
    ) {
        let Some(key) = self.hints.loading(load).cloned() else {
            return self.replica.loaded(load, record, context);
        };
        if record.is_err() {
            self.replica.doubt(&key, context);
        }
        let doubts = &self.replica.doubts;
        let is_doubted = doubts.contains(&key) || doubts.cover(context.partition(&key));
        let record = if is_doubted { Err(Damaged) } else { record };
        let call = self.coordinator.next_number();
        self.hints.loaded(load, record, call, context);
    }

    pub(super) fn scanned(&mut self, load: LoadId, page: Result<Page, NoPage>, context: &mut Context<'_>) {
        let Some(partition) = self.transfer.reads(load) else {
            return self.replica.scanned(load, page, context);
        };
        let (seen, (until, mut entries)) = match page {
            Ok(page) => (Some(page.until.clone()), (page.until, page.entries)),
            // Nobody knows what is there: all that others have is sent.
            Err(damage) => {
                self.replica.meet(damage.clone(), partition, context);
                // All before a damaged record was read, and it is in doubt by itself.
                let seen = match damage {
                    NoPage::Damaged(key) => self.replica.doubts.contains(&key).then_some(Some(key)),
                    NoPage::Unreadable => None,
                };
                (seen, (None, Vec::new()))
            }
        };
        self.transfer.note_seen(load, seen);
        // Of what may be lost, nothing is held.
        if !is_on(Mutant::TheDoubtfulIsHeld) {
            entries.retain(|(key, _)| !self.replica.doubts.contains(key));
        }
        let holding = Holding::new(&entries, until, !self.replica.shows_unsynced());
        self.transfer.read(load, holding, context);
    }

    /// Reads a page for those that take them over. One in a tick: what comes in between has its turn.
    pub(super) fn give(&mut self, context: &mut Context<'_>) {
        if self.replica.pages_given() < READ_AT_ONCE_MAX
            && let Some(Wanted { from, call, range, held }) = self.giving.next(context)
        {
            match held {
                Some(held) => self.replica.scan(from, call, (range, Some(held)), context),
                None => self.replica.salvage(from, call, range, context),
            }
        }
    }

    /// A replica counts for nothing of a partition that is in doubt as a whole, or of a salvaged one before it has merged
    /// all that is left. What it merges it writes itself.
    fn refused_in_doubt(&self, from: NodeId, message: &Message, context: &Context<'_>) -> Option<Message> {
        let partition = match message {
            Message::Write(write)
                if (from == context.me || is_on(Mutant::AnybodyWritesInDoubt))
                    && self.transfer.awaits(write.call.operation) =>
            {
                return None;
            }
            Message::Salvage { .. } => return None,
            message => message.asks_of(context.layout.partitions)?,
        };
        let is_salvaging =
            context.layout.salvaged.contains_key(&partition) && !self.transfer.has_merged(partition);
        let is_salvaging = is_salvaging && !is_on(Mutant::SalvagedCountsAtOnce);
        let is_doubted = self.replica.doubts.cover(partition) && !is_on(Mutant::DoubtfulPartitionsCount);
        (is_salvaging || is_doubted).then(|| message.clone().refused(Refusal::InDoubt)).flatten()
    }

    /// Returns what is news in an answer: nothing was concluded from it then, before that is taken in.
    pub(super) fn handle(&mut self, from: NodeId, message: Message, context: &mut Context<'_>) -> Heard {
        let is_about_a_dot = matches!(message, Message::MintAnswer { .. });
        if message.refusal() == Some(Refusal::StaleEpoch) && !is_about_a_dot {
            // The layout that it is under is on its way here, and all begins anew with that.
            return Vec::new();
        }
        if let Some(refused) = self.refused_in_doubt(from, &message, context) {
            context.send(from, refused);
            return Vec::new();
        }
        match message {
            Message::Write(write) => self.replica.write(from, write, context),
            Message::Mint(mint) => self.replica.mint(from, mint, context),
            Message::Read { call, key, want } => self.replica.read(from, call, (key, want), context),
            Message::Scan { call, range, held: Some(held) } => {
                self.giving.ask(Wanted { from, call, range, held: Some(held) }, context);
            }
            Message::Scan { call, range, held: None } => {
                self.replica.scan(from, call, (range, None), context);
            }
            Message::Salvage { call, range } => {
                self.giving.ask(Wanted { from, call, range, held: None }, context);
            }
            Message::WriteAnswer { call, outcome, noted } if self.hints.awaits(call) => {
                return self.hints.answered(from, call, (outcome, noted), context);
            }
            Message::WriteAnswer { call, outcome, .. } if self.transfer.awaits(call.operation) => {
                self.transfer.written(call, outcome, context);
            }
            Message::WriteAnswer { call, outcome, noted } => {
                return self.coordinator.write_answered(from, call, (outcome, noted), context);
            }
            Message::MintAnswer { call, outcome, noted } => {
                return self.coordinator.mint_answered(from, call, (outcome, noted), context);
            }
            Message::ReadAnswer { call, outcome, noted } => {
                if let Some(sets) = self.replica.doubts.sets_of(call.operation) {
                    let heard = news_in(noted, sets, context);
                    if heard.is_empty() || is_on(Mutant::HealsOverhearTheNews) {
                        self.replica.heal(from, call, outcome, context);
                    } else {
                        self.replica.doubts.ask_again(call, context);
                    }
                    return heard;
                }
                return self.coordinator.read_answered(from, call, (outcome, noted), context);
            }
            Message::ScanAnswer { call, outcome, noted } if self.transfer.awaits(call.operation) => {
                let sets = context.layout.replica_sets(self.transfer.partition_of(call.operation));
                let heard = news_in(noted, &sets, context);
                if heard.is_empty() || is_on(Mutant::HealsOverhearTheNews) {
                    self.transfer.page(from, call, outcome, context);
                } else {
                    self.transfer.ask_again(call, context.now.mono_ms);
                }
                return heard;
            }
            Message::ScanAnswer { call, outcome, noted } => {
                return self.coordinator.scan_answered(from, call, (outcome, noted), context);
            }
            Message::Hint { target, key } => self.hints.note(target, &key, context),
            Message::InitAccepted { .. }
            | Message::Layout { .. }
            | Message::Standing(_)
            | Message::Paxos { .. } => {}
        }
        Vec::new()
    }
}
