//! A session: one stream of operations, many in flight, each answered by its id when it ends.
//!
//! No task of its own and none for an operation: the stream of answers is what drives it, so a client that does not
//! read its answers is not read from either. Answers come first: what is under way ends before more is taken up, and
//! a client that is told that there is too much to do is not read from for a moment, since refusing is work too.
//! Invariant: at most half of [`SESSIONS_IN_FLIGHT_MAX`] operations of a session are in flight, no two of them with one
//! id; each is answered, unless the stream breaks.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use keystore_proto::client::reason;
use keystore_proto::v1;
use keystore_proto::v1::outcome::Outcome;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::ask::{Asked, Asker, Ended, Terms, item};
use super::outcome::{Failed, REFUSED_PAUSE};
use super::timeout::item_timeout_ms;
use crate::memory::{Held, Unsent};

/// How many operations of all sessions may be in flight; a session takes its share of them, and is not read from
/// beyond. One that is alone has enough for every commit of a sync; all together leave the memory for requests and
/// the replicas' room for writes to others as well.
pub(super) const SESSIONS_IN_FLIGHT_MAX: usize = 512;

/// How soon one that has its share looks whether others have left more, if none of its own operations ends meanwhile:
/// seldom enough for a thousand of them.
const LOOK: Duration = Duration::from_millis(100);

/// The stream of a session's answers.
pub struct Session<S> {
    asker: Arc<Asker>,
    /// `None` once nothing more comes.
    incoming: Option<S>,
    in_flight: FuturesUnordered<InFlight>,
    ids: HashSet<u64>,
    /// Nothing is read before it is over.
    pause: Option<Pin<Box<Sleep>>>,
    /// When to see whether others have left more of what all share.
    look: Option<Pin<Box<Sleep>>>,
    /// What the answers hold that were handed out.
    unsent: Unsent,
    /// The last word, once everything in flight is answered.
    broken: Option<Status>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

fn is_overload(response: &v1::SessionResponse) -> bool {
    let outcome = response.outcome.as_ref().and_then(|outcome| outcome.outcome.as_ref());
    matches!(outcome, Some(Outcome::Failed(failure)) if failure.reason == reason::OVERLOADED)
}

struct InFlight {
    id: u64,
    asked: Asked,
}

impl Future for InFlight {
    type Output = (v1::SessionResponse, Option<Held>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (told, memory) = match ready!(Pin::new(&mut self.asked).poll(context)) {
            Ok(Ended { outcome, memory }) => (Ok(outcome), memory),
            Err(failed) => (Err(failed), None),
        };
        Poll::Ready((v1::SessionResponse { id: self.id, outcome: Some(item(told)) }, memory))
    }
}

impl<S: Stream<Item = Result<v1::SessionRequest, Status>> + Unpin> Session<S> {
    /// `closing` is cancelled when the connections are to end. Comes with what its answers hold until they are sent.
    pub(super) fn new(asker: Arc<Asker>, incoming: S, closing: CancellationToken) -> (Self, Unsent) {
        let unsent = Unsent::default();
        let session = Self {
            asker,
            incoming: Some(incoming),
            in_flight: FuturesUnordered::new(),
            ids: HashSet::new(),
            pause: None,
            look: None,
            unsent: unsent.clone(),
            broken: None,
            closing: Box::pin(closing.cancelled_owned()),
        };
        (session, unsent)
    }

    /// Takes in what has come, as long as there is room; the answer to the first that is refused at once.
    fn read(&mut self, context: &mut Context<'_>) -> Option<v1::SessionResponse> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(context).is_pending() {
                return None;
            }
            self.pause = None;
        }
        loop {
            if !self.asker.is_next_in_turn(self.in_flight.len()) {
                // An operation that ends makes room; so do others, of which nobody tells.
                let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK)));
                if look.as_mut().poll(context).is_pending() {
                    break;
                }
                self.look = None;
                continue;
            }
            let Some(incoming) = &mut self.incoming else { break };
            match incoming.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(request))) => {
                    let id = request.id;
                    if let Err(failed) = self.begin(request) {
                        return Some(v1::SessionResponse { id, outcome: Some(failed.into()) });
                    }
                }
                Poll::Ready(Some(Err(status))) => self.close(Some(status)),
                Poll::Ready(None) => self.close(None),
                Poll::Pending => break,
            }
        }
        None
    }

    /// Hands an answer out, and holds its client back if it was one too many.
    fn told(&mut self, response: v1::SessionResponse) -> Poll<Option<Result<v1::SessionResponse, Status>>> {
        if is_overload(&response) {
            self.pause = Some(Box::pin(sleep(REFUSED_PAUSE)));
        }
        Poll::Ready(Some(Ok(response)))
    }

    fn begin(&mut self, request: v1::SessionRequest) -> Result<(), Failed> {
        let v1::SessionRequest { id, timeout_ms, operation } = request;
        if self.ids.contains(&id) {
            return Err(Failed::invalid(format!(
                "an operation with the id {id} is in flight already: of this one nothing was applied"
            )));
        }
        let deadline = self.asker.deadline_after(item_timeout_ms(timeout_ms));
        let terms = self.asker.take_turn().map(|turn| Terms { deadline, memory: None, turn: Some(turn) });
        let asked = self.asker.ask(operation.unwrap_or_default(), terms)?;
        self.ids.insert(id);
        self.in_flight.push(InFlight { id, asked });
        Ok(())
    }

    fn close(&mut self, broken: Option<Status>) {
        self.incoming = None;
        self.broken = broken;
    }
}

impl<S: Stream<Item = Result<v1::SessionRequest, Status>> + Unpin> Stream for Session<S> {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.in_flight.poll_next_unpin(context) {
                Poll::Ready(Some((response, memory))) => {
                    self.ids.remove(&response.id);
                    self.unsent.add(memory);
                    return self.told(response);
                }
                Poll::Ready(None) if self.incoming.is_none() => {
                    return Poll::Ready(self.broken.take().map(Err));
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            let before = (self.in_flight.len(), self.incoming.is_some());
            if let Some(refused) = self.read(context) {
                return self.told(refused);
            }
            if before != (self.in_flight.len(), self.incoming.is_some()) {
                // What has begun has to be polled once, to be heard of; or it was the last.
                continue;
            }
            if self.incoming.is_none() || self.closing.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.close(Some(Failed::draining().into()));
        }
    }
}
