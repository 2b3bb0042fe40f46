//! A batch: many operations in one call, each a request of its own to the core, with its own outcome.
//!
//! Invariant: what a batch takes in memory is bounded by its limits, whatever its keys hold: the memory for it is
//! reserved before anything is done, and answers that are too large together are left out with a reason.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::Either;
use keystore_core::effect::Deadline;
use keystore_proto::v1;
use keystore_proto::v1::operation::Operation as Wire;
use keystore_proto::v1::outcome::Outcome;
use prost::Message as _;

use super::ask::{Asker, Ended, GET_BYTES, Terms, held_bytes, item};
use super::outcome::Failed;
use crate::memory::Held;

/// How many operations a batch may have.
pub(super) const BATCH_OPERATIONS_MAX: usize = 1_000;
/// How many bytes of keys, values and contexts.
pub(super) const BATCH_BYTES_MAX: usize = 3 << 20;
/// How many bytes the outcomes may have together: below what gRPC clients take in one message unless told otherwise.
const ANSWER_BYTES_MAX: usize = 3 << 20;
/// How many operations of a batch are under way at once.
const IN_FLIGHT_MAX: usize = BATCH_OPERATIONS_MAX / 4;
/// What a read in a batch is counted as: at most a quarter of them are under way at once.
const BATCH_GET_BYTES: usize = GET_BYTES / 4;

impl Asker {
    /// Does all operations; their outcomes are in the same order. Fails if the batch as a whole is refused.
    pub(super) async fn batch(
        self: &Arc<Self>,
        operations: Vec<v1::Operation>,
        deadline: Deadline,
    ) -> Result<(Vec<v1::Outcome>, Held), Failed> {
        check(&operations)?;
        let bytes: usize = operations.iter().map(reserved_bytes).sum();
        // A node that is set to hold less than its largest batch still does it, alone.
        let mut reserved = self.reserve(bytes.min(self.about.config.limits.request_bytes))?;
        let asked = operations.into_iter().map(|operation| {
            let memory = Some(reserved.split(reserved_bytes(&operation)));
            match self.ask(operation, Ok(Terms { deadline, memory, turn: None })) {
                Ok(asked) => Either::Left(asked),
                Err(failed) => Either::Right(std::future::ready(Err(failed))),
            }
        });
        let mut told = futures::stream::iter(asked).buffered(IN_FLIGHT_MAX);
        let (mut outcomes, mut bytes, mut unsent) = (Vec::new(), 0, self.reserve(0)?);
        while let Some(told) = told.next().await {
            let told = told.and_then(|Ended { outcome, memory }| {
                let outcome = within(outcome, &mut bytes)?;
                memory.into_iter().for_each(|memory| unsent.merge(memory));
                Ok(outcome)
            });
            outcomes.push(item(told));
        }
        Ok((outcomes, unsent))
    }
}

fn check(operations: &[v1::Operation]) -> Result<(), Failed> {
    let count = operations.len();
    if count > BATCH_OPERATIONS_MAX {
        return Err(Failed::invalid(format!(
            "a batch has at most {BATCH_OPERATIONS_MAX} operations, this one has {count}: nothing was applied"
        )));
    }
    let bytes: usize = operations.iter().map(carried_bytes).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(Failed::invalid(format!(
            "a batch has at most {BATCH_BYTES_MAX} bytes of keys, values and contexts, this one has {bytes}: nothing \
             was applied"
        )));
    }
    Ok(())
}

/// What an operation adds to the size of its batch.
fn carried_bytes(operation: &v1::Operation) -> usize {
    match &operation.operation {
        Some(Wire::Get(get)) => get.key.len(),
        Some(Wire::Put(put)) => put.key.len() + put.value.len() + put.context.len(),
        Some(Wire::Delete(delete)) => delete.key.len() + delete.context.len(),
        None => 0,
    }
}

fn reserved_bytes(operation: &v1::Operation) -> usize {
    match &operation.operation {
        Some(Wire::Get(_)) => BATCH_GET_BYTES,
        Some(Wire::Put(_) | Wire::Delete(_)) | None => held_bytes(operation),
    }
}

/// The outcome, unless it is a read that no longer fits into the answer. That a write was done is always said.
fn within(outcome: Outcome, bytes: &mut usize) -> Result<Outcome, Failed> {
    let Outcome::Got(got) = &outcome else { return Ok(outcome) };
    let length = got.encoded_len();
    if *bytes + length > ANSWER_BYTES_MAX {
        return Err(Failed::overloaded(format!(
            "the values that this batch reads are larger than {ANSWER_BYTES_MAX} bytes together: read this key by \
             itself"
        )));
    }
    *bytes += length;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(value_len: usize) -> v1::Operation {
        let put = v1::PutRequest { key: "k".into(), value: vec![7; value_len].into(), ..Default::default() };
        v1::Operation { operation: Some(Wire::Put(put)) }
    }

    #[test]
    fn a_batch_that_is_too_large_is_refused_as_a_whole() {
        check(&[]).unwrap();
        check(&vec![put(1); BATCH_OPERATIONS_MAX]).unwrap();
        check(&vec![put(1); BATCH_OPERATIONS_MAX + 1]).unwrap_err();
        check(&[put((1 << 20) - 1), put((1 << 20) - 1), put((1 << 20) - 1)]).unwrap();
        check(&[put(1 << 20), put(1 << 20), put(1 << 20)]).unwrap_err();
    }

    #[test]
    fn reads_that_do_not_fit_are_named_and_smaller_ones_behind_them_are_told() {
        let got = |len: usize| {
            let value = v1::Value { value: vec![7; len].into(), stamp: Bytes::new() };
            Outcome::Got(v1::GetResponse { values: vec![value], context: Bytes::new() })
        };
        let mut bytes = 0;
        within(got(2 << 20), &mut bytes).unwrap();
        assert_eq!(within(got(1 << 20), &mut bytes).unwrap_err().code, tonic::Code::ResourceExhausted);
        within(got(1 << 19), &mut bytes).unwrap();
        within(Outcome::Put(v1::PutResponse::default()), &mut bytes).unwrap();
    }
}
