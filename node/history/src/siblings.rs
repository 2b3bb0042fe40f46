//! Keyspaces with causal contexts, judged key by key.
//!
//! What is certain is noted with the time from which it is: that a value is there (its put was acknowledged, or a
//! read showed it), and that it is gone for good (a write that knew it is there, or a read missed it). A context
//! stands for all that its read knew: what a value in it had replaced is in it as well. Whether a value that is
//! there may be missing from a read is asked of the writes that may have replaced it: one that did shows its own
//! value, or was replaced in turn.

use std::collections::BTreeSet;

use crate::evidence::{Evidence, FirstSeen};
use crate::operation::{
    Action, Context, Operation, Put, Puts, ReadOutcome, Removal, Seen, WriteOutcome, puts_of,
};
use crate::promise::{Promise, Violation};

#[cfg(test)]
mod tests;

type Values<'a> = BTreeSet<&'a [u8]>;

struct KeyCheck<'a> {
    puts: Puts<'a>,
    deletes: Vec<(&'a Removal, &'a Operation)>,
    there: FirstSeen<'a>,
    gone: FirstSeen<'a>,
    violations: Vec<Violation>,
}

pub(crate) fn check_key<'a>(mut operations: Vec<&'a Operation>) -> Vec<Violation> {
    operations.sort_by_key(|operation| (operation.answered_at, operation.asked_at));
    let delete = |operation: &&'a Operation| match &operation.action {
        Action::Delete(removal) => Some((removal, *operation)),
        Action::Put(_) | Action::Get(_) => None,
    };
    let mut check = KeyCheck {
        puts: puts_of(&operations),
        deletes: operations.iter().filter_map(delete).collect(),
        there: FirstSeen::default(),
        gone: FirstSeen::default(),
        violations: Vec::new(),
    };
    for operation in operations.iter().filter(|operation| operation.is_promised) {
        check.note_there(operation);
    }
    for operation in operations.iter().filter(|operation| operation.is_promised) {
        check.note_gone(operation);
    }
    for operation in operations {
        if let Some(values) = shown(operation) {
            check.read(operation, values);
        }
    }
    check.violations
}

/// What a read showed, none if it was not answered.
fn shown(operation: &Operation) -> Option<&[Seen]> {
    match &operation.action {
        Action::Get(ReadOutcome::Found(values)) => Some(values),
        Action::Get(ReadOutcome::Missing | ReadOutcome::Deleted(_)) => Some(&[]),
        Action::Get(ReadOutcome::Unanswered(_)) | Action::Put(_) | Action::Delete(_) => None,
    }
}

impl<'a> KeyCheck<'a> {
    fn note_there(&mut self, operation: &'a Operation) {
        if let Action::Put(Put { value, outcome: WriteOutcome::Done { .. }, .. }) = &operation.action {
            self.there.note(value, operation);
        }
        for Seen { value, .. } in shown(operation).unwrap_or_default() {
            self.there.note(value, operation);
        }
    }

    fn note_gone(&mut self, operation: &'a Operation) {
        match &operation.action {
            Action::Put(Put { context, outcome: WriteOutcome::Done { .. }, .. })
            | Action::Delete(Removal { context, outcome: WriteOutcome::Done { .. } }) => {
                self.note_replaced(context, operation);
            }
            Action::Put(_) | Action::Delete(_) => {}
            Action::Get(_) => {
                let Some(values) = shown(operation) else { return };
                for Seen { value, .. } in values {
                    if let Some((put, _)) = self.puts.get(value.as_slice()).copied() {
                        self.note_replaced(&put.context, operation);
                    }
                }
                let missed: Vec<_> = self.there.iter_before(operation).map(|(value, _)| value).collect();
                for value in missed.into_iter().filter(|value| !is_among(values, value)) {
                    self.gone.note(value, operation);
                }
            }
        }
    }

    /// All that a context stands for is gone once the write that bore it is there.
    fn note_replaced(&mut self, context: &'a Context, by: &'a Operation) {
        match context {
            Context::WhateverIsThere => {
                let values: Vec<_> = self.there.iter_before(by).map(|(value, _)| value).collect();
                for value in values {
                    self.gone.note(value, by);
                }
            }
            Context::Values(values) => {
                let mut open: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
                while let Some(value) = open.pop() {
                    // What is noted already has been followed already.
                    if self.gone.note(value, by) {
                        open.extend(self.replaced_by(value));
                    }
                }
            }
        }
    }

    /// The values in the context of the put of this one.
    fn replaced_by(&self, value: &[u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let values = match self.puts.get(value) {
            Some((Put { context: Context::Values(values), .. }, _)) => &values[..],
            Some((Put { context: Context::WhateverIsThere, .. }, _)) | None => &[],
        };
        values.iter().map(Vec::as_slice)
    }

    fn read(&mut self, read: &'a Operation, values: &'a [Seen]) {
        let mut before = Values::new();
        for Seen { value, .. } in values {
            if !before.insert(value) {
                let earlier = self.puts.get(value.as_slice()).map(|(_, operation)| *operation);
                self.broken(Promise::OneWriteOneValue, earlier, read);
            }
            self.check_source(read, value);
        }
        self.check_side_by_side(read, &before);
        if read.is_promised {
            self.check_returned(read, &before);
            self.check_missing(read, &before);
        }
    }

    fn check_source(&mut self, read: &Operation, value: &[u8]) {
        let Some((put, operation)) = self.puts.get(value).copied() else {
            return self.broken(Promise::OnlyWrittenIsRead, None, read);
        };
        if read.precedes(operation) {
            self.broken(Promise::OnlyWrittenIsRead, Some(operation), read);
        }
        if put.expiry.is_some_and(|expiry| expiry.not_after < read.asked_at) {
            self.broken(Promise::ExpiredIsGone, Some(operation), read);
        }
        if operation.has_failed() {
            self.broken(Promise::FailedIsNotApplied, Some(operation), read);
        }
    }

    /// No read, whatever its consistency, shows a value beside one that has replaced it.
    fn check_side_by_side(&mut self, read: &Operation, shown: &Values<'a>) {
        for newer in shown {
            let mut open: Vec<_> = self.replaced_by(newer).collect();
            let mut followed = Values::new();
            while let Some(value) = open.pop() {
                if !followed.insert(value) {
                    continue;
                }
                if shown.contains(value) && !self.is_repeated(value) {
                    let earlier = self.puts.get(newer).map(|(_, operation)| *operation);
                    self.broken(Promise::ReplacedStaysReplaced, earlier, read);
                }
                open.extend(self.replaced_by(value));
            }
        }
    }

    fn check_returned(&mut self, read: &Operation, shown: &Values<'a>) {
        for value in shown {
            let Some(Evidence { by, .. }) = self.gone.before(value, read) else { continue };
            if !self.is_repeated(value) {
                let promise = match by.action {
                    Action::Put(_) => Promise::ReplacedStaysReplaced,
                    Action::Delete(_) => Promise::DeletedStaysDeleted,
                    Action::Get(_) => Promise::ReadsNeverGoBack,
                };
                self.broken(promise, Some(by), read);
            }
        }
    }

    fn check_missing(&mut self, read: &Operation, shown: &Values<'a>) {
        let is_missing = |value: &[u8]| !shown.contains(value) && self.gone.before(value, read).is_none();
        let missing: Vec<_> = self.there.iter_before(read).filter(|(value, _)| is_missing(value)).collect();
        if missing.is_empty() {
            return;
        }
        let may_be_gone = self.may_be_gone(read, shown);
        for (value, Evidence { by, .. }) in missing {
            if may_be_gone.contains(value) {
                continue;
            }
            let promise = match by.action {
                Action::Put(_) | Action::Delete(_) => Promise::AcknowledgedIsReadable,
                Action::Get(_) => Promise::ReadsNeverGoBack,
            };
            self.broken(promise, Some(by), read);
            if let Some((_, put)) = self.puts.get(value)
                && put.session == read.session
                && put.acknowledged().is_some()
                && put.is_promised
                && put.precedes(read)
            {
                self.broken(Promise::ReadYourWrites, Some(put), read);
            }
        }
    }

    /// Values that some write may have removed for this read: one that the read shows, one that removed itself by
    /// its expiry, a delete, or one that was removed in turn.
    fn may_be_gone(&self, read: &Operation, shown: &Values<'a>) -> Values<'a> {
        let mut open: Vec<&[u8]> = shown.iter().flat_map(|value| self.replaced_by(value)).collect();
        for (value, (put, operation)) in &self.puts {
            let is_over = put.expiry.is_some_and(|expiry| expiry.not_before <= read.answered_at);
            if is_over && !operation.has_failed() && !read.precedes(operation) {
                open.push(value);
            }
        }
        for (removal, delete) in &self.deletes {
            if delete.has_failed() || read.precedes(delete) {
                continue;
            }
            match &removal.context {
                Context::Values(values) => open.extend(values.iter().map(Vec::as_slice)),
                Context::WhateverIsThere => open.extend(self.in_reach(delete)),
            }
        }
        let mut gone = Values::new();
        while let Some(value) = open.pop() {
            // A failed put has removed nothing; that it is in a context at all is another check's finding.
            let has_failed = self.puts.get(value).is_some_and(|(_, operation)| operation.has_failed());
            if gone.insert(value) && !has_failed {
                open.extend(self.replaced_by(value));
            }
        }
        gone
    }

    /// What a delete without a context may have found: all that was written before it ended, or, since an unknown
    /// one may go on, anything.
    fn in_reach(&self, delete: &Operation) -> impl Iterator<Item = &'a [u8]> {
        let has_ended = delete.acknowledged().is_some();
        let puts = self.puts.iter().filter(move |(_, (_, put))| !has_ended || !delete.precedes(put));
        puts.map(|(value, _)| *value)
    }

    fn is_repeated(&self, value: &[u8]) -> bool {
        self.puts.get(value).is_some_and(|(put, _)| put.is_repeated)
    }

    fn broken(&mut self, promise: Promise, earlier: Option<&Operation>, later: &Operation) {
        self.violations.push(Violation::new(promise, earlier, later));
    }
}

fn is_among(values: &[Seen], value: &[u8]) -> bool {
    values.iter().any(|seen| seen.value == value)
}
