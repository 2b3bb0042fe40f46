//! The loop of attempts at one request, within its deadline.

use std::sync::Arc;
use std::time::Duration;

use keystore_core::partition::RecordKey;
use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::Error;
use crate::node::Node;
use crate::router::Router;
use crate::trail::{Next, Rounds, Trail};
use crate::verdict::{Kind, Verdict};

/// A read that a node leaves unanswered goes to another one after half of the time left, but not sooner than this.
const READ_ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// The node keeps the same deadline: what it says then is worth waiting for, since it may know more than that time
/// has run out.
const ANSWER_GRACE: Duration = Duration::from_millis(50);

/// What is to be kept about a request, beside its message.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub kind: Kind,
    /// Whose owners are preferred.
    pub key: Option<&'a RecordKey>,
    pub timeout: Duration,
    pub rounds: Rounds,
}

impl Router {
    pub(crate) async fn execute<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        request: &Q,
        call: Call<'_>,
    ) -> Result<A, Error> {
        let deadline = Instant::now() + call.timeout;
        let mut trail = Trail::new(call.rounds);
        let mut told = None;
        loop {
            let candidates = self.candidates(call.key);
            let node = candidates.choose(&trail).expect("a router has endpoints").clone();
            trail.note(node.clone());
            let others_left = candidates.any_not_asked(&trail);
            let until = match call.kind {
                Kind::Read if others_left => deadline.min(half_way(deadline)),
                Kind::Read | Kind::Write => deadline,
            };
            let verdict = match attempt(&node, path, request, call.kind, until).await {
                Ok(answer) => {
                    node.note_success();
                    return Ok(answer);
                }
                Err(verdict) => verdict,
            };
            if verdict.blames_node {
                node.note_failure();
                self.note_stale();
            }
            let error = more_telling(told, verdict.error);
            match trail.next(verdict.retry, others_left) {
                Next::TryAfter(pause) if Instant::now() + pause < deadline => {
                    tracing::debug!(%error, node = node.address(), "request retried");
                    told = Some(error);
                    if !pause.is_zero() {
                        sleep(pause).await;
                    }
                }
                Next::TryAfter(_) | Next::GiveUp => return Err(error),
            }
        }
    }
}

/// Of two attempts' errors: what a node has said is worth more than that another one could not be reached. Only an
/// attempt that surely applied nothing is followed by another, so the earlier error never hides an unknown outcome.
fn more_telling(earlier: Option<Error>, later: Error) -> Error {
    match (earlier, later) {
        (Some(earlier), Error::Connect(_)) => earlier,
        (_, later) => later,
    }
}

fn half_way(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 2).max(READ_ATTEMPT_MIN)
}

async fn attempt<Q: Message, A: Message + Default>(
    node: &Arc<Node>,
    path: &'static str,
    request: &Q,
    kind: Kind,
    until: Instant,
) -> Result<A, Verdict> {
    // Nothing is sent before there is a connection: running out of time here is no unknown outcome.
    let connection = match timeout_at(until, node.connection()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(Verdict::of_dial(&error)),
        Err(_) => return Err(Verdict::of_silence(Kind::Read, node.address())),
    };
    let left = until.saturating_duration_since(Instant::now());
    match timeout_at(until + ANSWER_GRACE, connection.call(path, request, left)).await {
        Ok(Ok(answer)) => Ok(answer),
        // Whatever cut the call off then did it because of the deadline: a server's own timeout, for one.
        Ok(Err(error)) if Instant::now() >= until && error.proves_nothing() => {
            Err(Verdict::of_silence(kind, node.address()))
        }
        Ok(Err(error)) => Err(Verdict::of_call(kind, node.address(), error)),
        Err(_) => Err(Verdict::of_silence(kind, node.address())),
    }
}
