//! One operation from the wire to the core and back, the same for a call, an item of a batch and one of a session.
//!
//! Once the core has it, no error says that nothing was applied unless the core does.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use keystore_core::effect::{Answer, Deadline, Failure, Operation};
use keystore_core::partition::RecordKey;
use keystore_core::stamp::Stamp;
use keystore_proto::client::{Request as Checked, durability_to_wire, read_response};
use keystore_proto::error::WireError;
use keystore_proto::v1;
use keystore_proto::v1::operation::Operation as Wire;
use keystore_proto::v1::outcome::Outcome;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::Code;

use super::outcome::{Failed, Subject, saturated};
use super::session::SESSIONS_IN_FLIGHT_MAX;
use crate::about::About;
use crate::handle::{self, Reserved, Told};
use crate::memory::{Held, Memory, SMALL_BYTES};
use crate::metrics::{Kind, RequestMetrics, RequestTimer};

/// What a read is counted as before it is known how large its values are.
pub(super) const GET_BYTES: usize = SMALL_BYTES;

/// Hands operations to the core.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) about: About,
    pub(super) metrics: RequestMetrics,
    /// For what is held of all requests.
    pub(super) memory: Memory,
    /// How many more operations of sessions may be under way.
    pub(super) turns_left: Arc<Semaphore>,
}

/// On what terms an operation is done.
pub(super) struct Terms {
    pub(super) deadline: Deadline,
    /// Memory for what it holds; `None`: that has yet to be reserved.
    pub(super) memory: Option<Held>,
    /// Of an operation of a session.
    pub(super) turn: Option<OwnedSemaphorePermit>,
}

/// An operation that the core has. Dropped, it is counted as cancelled, and done all the same.
pub(super) struct Asked {
    asker: Arc<Asker>,
    kind: Kind,
    key: RecordKey,
    timer: Option<RequestTimer>,
    answered: oneshot::Receiver<Told>,
}

/// The end of an operation, with the memory that it takes until it is sent.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) memory: Option<Held>,
}

impl Asker {
    pub(super) fn new(about: About, metrics: RequestMetrics) -> Self {
        let memory = Memory::new(about.config.limits.request_bytes);
        let turns_left = Arc::new(Semaphore::new(SESSIONS_IN_FLIGHT_MAX));
        Self { about, metrics, memory, turns_left }
    }

    pub(super) fn deadline_after(&self, timeout_ms: u64) -> Deadline {
        Deadline::after(self.about.core.clock().now(), timeout_ms)
    }

    /// Hands an operation over, unless it is malformed, comes too late, or there is no room for it. Its terms may
    /// have been refused already.
    pub(super) fn ask(
        self: &Arc<Self>,
        operation: v1::Operation,
        terms: Result<Terms, Failed>,
    ) -> Result<Asked, Failed> {
        let kind = match &operation.operation {
            Some(Wire::Get(_)) => Kind::Get,
            Some(Wire::Put(_)) => Kind::Put,
            Some(Wire::Delete(_)) => Kind::Delete,
            None => return Err(WireError::Missing("operation").into()),
        };
        let timer = self.metrics.start(kind);
        match terms.and_then(|terms| self.hand_over(operation, terms)) {
            Ok((key, answered)) => {
                Ok(Asked { asker: Arc::clone(self), kind, key, timer: Some(timer), answered })
            }
            Err(failed) => {
                timer.stop(failed.code);
                Err(failed)
            }
        }
    }

    fn hand_over(
        &self,
        operation: v1::Operation,
        terms: Terms,
    ) -> Result<(RecordKey, oneshot::Receiver<Told>), Failed> {
        let Terms { deadline, memory, turn } = terms;
        let bytes = held_bytes(&operation);
        let Checked { operation, consistency, durability } = operation.try_into()?;
        let (key, is_read) = match &operation {
            Operation::Get { key } => (key.clone(), true),
            Operation::Put { key, .. } | Operation::Delete { key, .. } => (key.clone(), false),
            Operation::Scan { .. } => return Err(WireError::Missing("operation").into()),
        };
        if deadline.mono_ms <= self.about.core.clock().mono_ms() {
            return Err(Failed::deadline_exceeded(is_read));
        }
        let memory = match memory {
            Some(memory) => memory,
            None => self.reserve(bytes)?,
        };
        let reserved = Reserved { memory, turn };
        let request = handle::Request { operation, consistency, durability, deadline, reserved };
        let answered = self.about.core.request(request).map_err(Failed::from)?;
        Ok((key, answered))
    }

    /// Memory for what a request carries or asks for, given back when dropped.
    pub(super) fn reserve(&self, bytes: usize) -> Result<Held, Failed> {
        self.memory.take(bytes).ok_or_else(Failed::full)
    }

    /// For one more operation of a session that has so many under way: of all that sessions may have, a session may
    /// take no more than it leaves (Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet
    /// switches, 1998). So one alone has half, each of several has the same, and whoever comes next finds some left.
    pub(super) fn is_next_in_turn(&self, under_way: usize) -> bool {
        under_way < self.turns_left.available_permits().max(1)
    }

    pub(super) fn take_turn(&self) -> Result<OwnedSemaphorePermit, Failed> {
        Arc::clone(&self.turns_left).try_acquire_owned().map_err(|_| Failed::full())
    }

    /// Why the core has not done what was asked.
    pub(super) fn failed(&self, failure: Failure, keyspace: &str, is_read: bool) -> Failed {
        let view = self.about.core.view();
        let mode = view.layout.as_ref().and_then(|layout| layout.keyspaces.get(keyspace).copied());
        Failed::by_core(failure, Subject { keyspace, mode, is_read })
    }
}

/// What an operation takes in memory while it is under way.
pub(super) fn held_bytes(operation: &v1::Operation) -> usize {
    match &operation.operation {
        Some(Wire::Get(_)) => GET_BYTES,
        Some(Wire::Put(put)) => put.value.len() + put.context.len(),
        Some(Wire::Delete(delete)) => delete.context.len(),
        None => 0,
    }
}

impl Asked {
    fn told(&self, answer: Answer) -> Result<Outcome, Failed> {
        match (self.kind, answer) {
            (Kind::Get, Answer::Read(values)) => Ok(Outcome::Got(read_response(values))),
            (Kind::Put, Answer::Written { stamp, acks, durability, context }) => {
                Ok(Outcome::Put(v1::PutResponse {
                    stamp: stamp_bytes(stamp),
                    context: context.unwrap_or_default(),
                    acks: saturated(acks),
                    durability: durability_to_wire(durability).into(),
                }))
            }
            (Kind::Delete, Answer::Written { stamp, acks, durability, context }) => {
                Ok(Outcome::Deleted(v1::DeleteResponse {
                    stamp: stamp_bytes(stamp),
                    context: context.unwrap_or_default(),
                    acks: saturated(acks),
                    durability: durability_to_wire(durability).into(),
                }))
            }
            (kind, Answer::Failed(failure)) => {
                Err(self.asker.failed(failure, self.key.keyspace(), kind == Kind::Get))
            }
            (kind, other) => Err(unexpected(&other, kind == Kind::Get)),
        }
    }
}

impl Future for Asked {
    type Output = Result<Ended, Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let told = match ready!(Pin::new(&mut self.answered).poll(context)) {
            Ok(Told { answer, memory }) => self.told(answer).map(|outcome| Ended { outcome, memory }),
            Err(_stopped) => Err(Failed::unknown(self.kind == Kind::Get)),
        };
        if let Some(timer) = self.timer.take() {
            timer.stop(told.as_ref().map_or_else(|failed| failed.code, |_| Code::Ok));
        }
        Poll::Ready(told)
    }
}

/// The core answers each kind of request with its own kind of answer.
pub(super) fn unexpected(answer: &Answer, is_read: bool) -> Failed {
    tracing::error!(?answer, "an answer of the wrong kind");
    Failed::unknown(is_read)
}

/// The end of an operation as an item of a batch or a session.
pub(super) fn item(told: Result<Outcome, Failed>) -> v1::Outcome {
    match told {
        Ok(outcome) => v1::Outcome { outcome: Some(outcome) },
        Err(failed) => failed.into(),
    }
}

fn stamp_bytes(stamp: Stamp) -> Bytes {
    Bytes::copy_from_slice(&stamp.to_bytes())
}
