//! Facts that hold from some time on, and who shows them.

use std::collections::BTreeMap;

use crate::operation::Operation;

/// The value of each fact is proven from `since` on, by an operation that ended then.
#[derive(Clone, Copy)]
pub(crate) struct Evidence<'a> {
    pub(crate) since: u64,
    pub(crate) by: &'a Operation,
}

/// For each value of a key, the first evidence of something.
#[derive(Default)]
pub(crate) struct FirstSeen<'a>(BTreeMap<&'a [u8], Evidence<'a>>);

impl<'a> FirstSeen<'a> {
    /// Keeps what came first. Operations are to be noted in the order of their answers. True if it was news.
    pub(crate) fn note(&mut self, value: &'a [u8], by: &'a Operation) -> bool {
        let mut is_new = false;
        self.0.entry(value).or_insert_with(|| {
            is_new = true;
            Evidence { since: by.answered_at, by }
        });
        is_new
    }

    /// What was proven of this value before the operation began.
    pub(crate) fn before(&self, value: &[u8], operation: &Operation) -> Option<Evidence<'a>> {
        self.0.get(value).copied().filter(|evidence| evidence.since < operation.asked_at)
    }

    pub(crate) fn iter_before<'b>(
        &'b self,
        operation: &'b Operation,
    ) -> impl Iterator<Item = (&'a [u8], Evidence<'a>)> + 'b {
        let all = self.0.iter().map(|(value, evidence)| (*value, *evidence));
        all.filter(|(_, evidence)| evidence.since < operation.asked_at)
    }
}
