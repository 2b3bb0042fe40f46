//! Pages of records: what a replica shows of a range, or of a partition that is salvaged, whether or not that counts.

use super::{Load, Replica};
use crate::context::Context;
use crate::effect::{Effect, LoadId, NoPage};
use crate::held::Held;
use crate::id::NodeId;
use crate::message::{Call, Message, Page, Refusal, ScanOutcome, ScanRange};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::record::{Body, Record};
use crate::transfer::{COMPARED_BYTES, RECORD_BYTES};

/// How many records a page of a partition that is salvaged has, behind a damaged one: the next one may be as well.
const BEHIND_DAMAGE_RECORDS: u32 = 2;

/// Says what somebody lacks of a page, at the cost of the background.
fn what_is_lacking(held: &Held, page: Page, context: &mut Context<'_>) -> ScanOutcome {
    context.budget.spend(COMPARED_BYTES * page.entries.len());
    let Some(lacking) = held.lacks(page) else { return ScanOutcome::Differs };
    context.budget.spend(cost(&lacking.entries));
    ScanOutcome::Lacking(lacking)
}

/// A peer is told that a page is cut, not where: that is behind its last record.
fn ending_with_its_last(page: Page) -> Page {
    if page.is_cut() { Page::cut(page.entries) } else { page }
}

/// What it costs to give these records to somebody.
fn cost(entries: &[(RecordKey, Record)]) -> usize {
    let bytes = |(key, record): &(RecordKey, Record)| RECORD_BYTES + key.encoded().len() + record.value_len();
    entries.iter().map(bytes).sum()
}

impl Replica {
    /// How many pages are being read for others to take them over.
    pub(crate) fn pages_given(&self) -> usize {
        self.given
    }

    pub(crate) fn scan(
        &mut self,
        from: NodeId,
        call: Call,
        (range, held): (ScanRange, Option<Held>),
        context: &mut Context<'_>,
    ) {
        let partition = range.partition;
        if !context.layout.is_replica(partition, context.me) {
            let outcome = ScanOutcome::Refused(Refusal::NotReplica);
            return context.send(from, Message::ScanAnswer { call, outcome, noted: Vec::new() });
        }
        self.given += usize::from(held.is_some());
        let load = self.expect(Load::Scan { range: range.clone(), held, from, call }, context);
        context.effects.push(Effect::Scan { load, range });
    }

    pub(crate) fn scanned(&mut self, load: LoadId, page: Result<Page, NoPage>, context: &mut Context<'_>) {
        let (range, held, from, call) = match self.loads.remove(&load) {
            Some(Load::Scan { range, held, from, call }) => {
                self.given = self.given.saturating_sub(held.is_some().into());
                (range, held, from, call)
            }
            Some(Load::Salvage { range, from, call }) => {
                self.given = self.given.saturating_sub(1);
                return self.salvaged((range, from, call), page, context);
            }
            Some(Load::Write(_) | Load::Read { .. }) | None => return,
        };
        let outcome = match page {
            Ok(page)
                if (self.doubts.cover(range.partition)
                    || self.doubts.touch(&range, page.until.as_ref(), context))
                    && !is_on(Mutant::ScansSpeakOfKeysInDoubt) =>
            {
                ScanOutcome::Refused(Refusal::InDoubt)
            }
            // Where nothing is left, whoever asks waits for what comes behind that.
            Ok(Page { entries, until: Some(behind) }) if entries.is_empty() && held.is_none() => {
                return self.scan(from, call, (ScanRange { after: Some(behind), ..range }, None), context);
            }
            Ok(mut page) => {
                context.counters.scan_cuts += u64::from(page.is_cut());
                if held.is_some() && is_on(Mutant::TombstonesStay) {
                    page.entries.retain(|(_, record)| record.body != Body::Tombstone);
                }
                match held {
                    None => ScanOutcome::Page(ending_with_its_last(page)),
                    Some(held) => what_is_lacking(&held, page, context),
                }
            }
            Err(damage) => {
                self.meet(damage, range.partition, context);
                ScanOutcome::Refused(Refusal::InDoubt)
            }
        };
        let noted = context.noted(range.partition);
        context.send(from, Message::ScanAnswer { call, outcome, noted });
    }

    /// Somebody merges all that is left of a partition.
    pub(crate) fn salvage(&mut self, from: NodeId, call: Call, range: ScanRange, context: &mut Context<'_>) {
        let sources = context.layout.salvaged.get(&range.partition);
        if !sources.is_some_and(|sources| sources.contains(&context.me)) {
            let outcome = ScanOutcome::Refused(Refusal::NotReplica);
            return context.send(from, Message::ScanAnswer { call, outcome, noted: Vec::new() });
        }
        self.given += 1;
        let load = self.expect(Load::Salvage { range: range.clone(), from, call }, context);
        context.effects.push(Effect::Scan { load, range });
    }

    /// A page that meets a damaged record is read again, half as long each time, until it ends before that one; where it begins
    /// with that one, it is read from behind it.
    fn salvaged(
        &mut self,
        (range, from, call): (ScanRange, NodeId, Call),
        page: Result<Page, NoPage>,
        context: &mut Context<'_>,
    ) {
        let limit = range.limit;
        let outcome = match page {
            Ok(mut page) => {
                page.entries
                    .retain(|(key, _)| !self.doubts.contains(key) || is_on(Mutant::TheDamagedIsGivenAway));
                match page {
                    Page { entries, until: Some(behind) } if entries.is_empty() => {
                        return self.salvage(from, call, ScanRange { after: Some(behind), ..range }, context);
                    }
                    page => {
                        context.budget.spend(cost(&page.entries));
                        ScanOutcome::Page(ending_with_its_last(page))
                    }
                }
            }
            Err(NoPage::Damaged(key)) if limit == 1 => {
                self.doubt(&key, context);
                let range = ScanRange { after: Some(key), limit: BEHIND_DAMAGE_RECORDS, ..range };
                return self.salvage(from, call, range, context);
            }
            Err(NoPage::Damaged(key)) => {
                self.doubt(&key, context);
                let limit = (limit / 2).max(1);
                return self.salvage(from, call, ScanRange { limit, ..range }, context);
            }
            Err(NoPage::Unreadable) => {
                self.doubt_partition(range.partition, context);
                ScanOutcome::Refused(Refusal::InDoubt)
            }
        };
        let noted = context.noted(range.partition);
        context.send(from, Message::ScanAnswer { call, outcome, noted });
    }

    /// A page of this partition could not be read.
    pub(crate) fn meet(&mut self, damage: NoPage, partition: Partition, context: &mut Context<'_>) {
        match damage {
            NoPage::Damaged(key) => self.doubt(&key, context),
            NoPage::Unreadable => self.doubt_partition(partition, context),
        }
    }
}
