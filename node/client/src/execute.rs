//! The loop of attempts at one request, within its deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::partition::RecordKey;
use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};

use crate::connection::Connection;
use crate::error::Error;
use crate::grpc::CallError;
use crate::node::Node;
use crate::options::Patience;
use crate::router::Router;
use crate::trail::{Next, Trail};
use crate::verdict::{Kind, Miss, Verdict};

/// A read that a node leaves unanswered goes to another one after half of the time left, but not sooner than this.
const READ_ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// The node keeps the same deadline: what it says then is worth waiting for, since it may know more than that time
/// has run out.
const ANSWER_GRACE: Duration = Duration::from_millis(50);

/// For how long a request waits for a connection to a node that is known by name, if another node has one already:
/// names inside a Kubernetes cannot be resolved from everywhere, and any node coordinates. The attempt to connect
/// goes on meanwhile.
const SLOW_DIAL: Duration = Duration::from_millis(100);

/// What is to be kept about a request, beside its message.
pub(crate) struct Call<'a> {
    pub kind: Kind,
    /// Whose owners are preferred.
    pub key: Option<&'a RecordKey>,
    pub timeout: Duration,
    pub patience: Patience,
    /// What became of an attempt that was made already.
    pub earlier: Option<Error>,
}

/// A request as it is put to a node.
pub(crate) trait Ask<A>: Sync {
    fn ask(
        &self,
        connection: &Connection,
        timeout: Duration,
    ) -> impl Future<Output = Result<A, CallError>> + Send;
}

/// By a call of its own.
pub(crate) struct Unary<'a, Q> {
    pub path: &'static str,
    pub request: &'a Q,
}

impl<Q: Message, A: Message + Default> Ask<A> for Unary<'_, Q> {
    async fn ask(&self, connection: &Connection, timeout: Duration) -> Result<A, CallError> {
        connection.call(self.path, self.request, timeout).await
    }
}

/// Until when an attempt may last.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// For there to be a connection; not after `until`.
    pub connected: Instant,
    pub until: Instant,
}

impl Limits {
    pub(crate) fn of(node: &Node, any_connected: bool, until: Instant) -> Self {
        let is_slow_to_know = any_connected && node.is_named() && !node.is_connected();
        let connected = if is_slow_to_know { until.min(Instant::now() + SLOW_DIAL) } else { until };
        Self { connected, until }
    }
}

impl Router {
    pub(crate) async fn execute<A>(&self, request: &impl Ask<A>, call: Call<'_>) -> Result<A, Error> {
        let deadline = Instant::now() + call.timeout;
        let mut trail = Trail::new(call.patience);
        let mut told = call.earlier;
        loop {
            let candidates = self.candidates(call.key);
            let node = candidates.choose(&trail).expect("a router has endpoints").clone();
            trail.note(node.clone());
            let others_left = candidates.any_not_asked(&trail);
            let until = match call.kind {
                Kind::Read if others_left => deadline.min(half_way(deadline)),
                Kind::Read | Kind::Write | Kind::RepeatableWrite => deadline,
            };
            let limits = Limits::of(&node, candidates.any_connected(&trail), until);
            let miss = match attempt(&node, request, limits).await {
                Ok(answer) => {
                    node.note_success();
                    return Ok(answer);
                }
                Err(miss) => miss,
            };
            let verdict = self.judge(call.kind, &node, miss);
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

    /// What a failed attempt means, also for whom to ask next time.
    pub(crate) fn judge(&self, kind: Kind, node: &Node, miss: Miss) -> Verdict {
        let verdict = Verdict::of(kind, node.address(), miss);
        if verdict.blames_node {
            node.note_failure();
            self.note_stale();
        }
        verdict
    }
}

/// Of two attempts' errors: that a write may be applied stays true whatever is said of a later attempt, and what a
/// node has said is worth more than that another one could not be reached.
pub(crate) fn more_telling(earlier: Option<Error>, later: Error) -> Error {
    match earlier {
        Some(earlier) if !earlier.surely_not_applied() && later.surely_not_applied() => earlier,
        Some(earlier) if earlier.surely_not_applied() && matches!(later, Error::Connect(_)) => earlier,
        _ => later,
    }
}

fn half_way(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 2).max(READ_ATTEMPT_MIN)
}

/// The connection to a node, within the limits of an attempt. Nothing was sent if there is none.
pub(crate) async fn connected(node: &Node, limits: Limits) -> Result<Arc<Connection>, Miss> {
    match timeout_at(limits.connected, node.connection()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(Miss::Dial(error)),
        Err(_) if limits.connected < limits.until => Err(Miss::SlowDial),
        Err(_) => Err(Miss::LateDial),
    }
}

pub(crate) async fn attempt<A>(node: &Node, request: &impl Ask<A>, limits: Limits) -> Result<A, Miss> {
    let connection = connected(node, limits).await?;
    let until = limits.until;
    let left = until.saturating_duration_since(Instant::now());
    match timeout_at(until + ANSWER_GRACE, request.ask(&connection, left)).await {
        Ok(Ok(answer)) => Ok(answer),
        // Whatever cut the call off then did it because of the deadline: a server's own timeout, for one.
        Ok(Err(error)) if Instant::now() >= until && error.proves_nothing() => Err(Miss::Silence),
        Ok(Err(error)) => Err(Miss::Call(error)),
        Err(_) => Err(Miss::Silence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Detail, Reason};

    #[test]
    fn that_a_write_may_be_applied_outlives_whatever_a_later_attempt_says() {
        let detail = |message: &str| Detail::new(Reason::BROKEN_STREAM, message);
        let unknown = Error::Unknown(detail("unknown"));
        let deadline = Error::DeadlineExceeded { sent_write: true, detail: detail("deadline") };
        let failed = Error::Failed(detail("failed"));
        let connect = Error::Connect(detail("connect"));
        for later in [&failed, &connect] {
            assert_eq!(more_telling(Some(unknown.clone()), later.clone()), unknown);
            assert_eq!(more_telling(Some(deadline.clone()), later.clone()), deadline);
        }
        assert_eq!(more_telling(Some(unknown), deadline.clone()), deadline);
        assert_eq!(more_telling(Some(failed.clone()), deadline.clone()), deadline);
        assert_eq!(more_telling(Some(failed.clone()), connect.clone()), failed);
        assert_eq!(more_telling(None, connect.clone()), connect);
    }
}
