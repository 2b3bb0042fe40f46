//! The session stream of one connection: operations in flight together, answered as they end, each by its id.
//!
//! What waits goes out in one piece as soon as the stream takes it, so many requests share one frame and one
//! system call. The invariant: an operation of which nothing was handed to the stream is told as not sent, and any
//! other one that the stream's end leaves unanswered as broken.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use h2::client::ResponseFuture;
use keystore_proto::v1;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::grpc::{CallError, Caller, Messages, frame};

const SESSION: &str = "/keystore.v1.KeyStore/Session";
/// How many operations may be in flight on one stream; more wait.
const IN_FLIGHT_MAX: usize = 1024;
/// A piece of the stream is sent when it has this many bytes, or nothing more waits.
const PIECE_BYTES: usize = 64 << 10;

type Answer = oneshot::Sender<Result<Outcome, CallError>>;

pub(crate) struct Session {
    requests: mpsc::Sender<v1::SessionRequest>,
    room: Semaphore,
    calls: Arc<Calls>,
    last_id: AtomicU64,
    _driver: AbortOnDropHandle<()>,
}

/// The operations that nobody has answered yet.
#[derive(Default)]
struct Calls(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: BTreeMap<u64, Waiting>,
    /// Why nothing more is taken.
    ended: Option<String>,
}

struct Waiting {
    answer: Answer,
    was_sent: bool,
}

impl Session {
    /// The stream is opened by the task that drives it from then on.
    pub(crate) fn start(caller: Caller) -> Self {
        let (requests, queue) = mpsc::channel(IN_FLIGHT_MAX);
        let calls = Arc::new(Calls::default());
        let driver = AbortOnDropHandle::new(tokio::spawn(drive(caller, queue, calls.clone())));
        let room = Semaphore::new(IN_FLIGHT_MAX);
        Self { requests, room, calls, last_id: AtomicU64::new(0), _driver: driver }
    }

    pub(crate) async fn call(&self, operation: &Operation, timeout: Duration) -> Result<Outcome, CallError> {
        let _room = self.room.acquire().await.expect("the semaphore is never closed");
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = oneshot::channel();
        let _entered = self.calls.enter(id, answer)?;
        let timeout_ms = timeout.as_micros().div_ceil(1000).max(1);
        let request = v1::SessionRequest {
            id,
            timeout_ms: u32::try_from(timeout_ms).unwrap_or(u32::MAX),
            operation: Some(v1::Operation { operation: Some(operation.clone()) }),
        };
        // A queue that is closed belongs to a stream that has ended, and its end answers this operation too.
        let _ = self.requests.send(request).await;
        answered.await.unwrap_or_else(|_| Err(CallError::Broken("the session's task ended".to_owned())))
    }
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, id: u64, answer: Answer) -> Result<Entered<'_>, CallError> {
        let mut state = self.lock();
        if let Some(why) = &state.ended {
            return Err(CallError::NotSent(why.clone()));
        }
        state.waiting.insert(id, Waiting { answer, was_sent: false });
        Ok(Entered { calls: self, id })
    }

    /// False if nobody waits for this operation any more: it need not be sent.
    fn note_sent(&self, id: u64) -> bool {
        match self.lock().waiting.get_mut(&id) {
            Some(waiting) => {
                waiting.was_sent = true;
                true
            }
            None => false,
        }
    }

    fn answer(&self, id: u64, outcome: Result<Outcome, CallError>) {
        let waiting = self.lock().waiting.remove(&id);
        if let Some(Waiting { answer, was_sent: _ }) = waiting {
            // Whoever asked may have stopped waiting at this very moment.
            let _ = answer.send(outcome);
        }
    }

    fn end(&self, error: &CallError) {
        let mut state = self.lock();
        state.ended = Some(error.to_string());
        for (_, Waiting { answer, was_sent }) in std::mem::take(&mut state.waiting) {
            let told = if was_sent { error.clone() } else { CallError::NotSent(error.to_string()) };
            let _ = answer.send(Err(told));
        }
    }
}

/// Forgets an operation when its future ends, answered or dropped half-way.
struct Entered<'a> {
    calls: &'a Calls,
    id: u64,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.calls.lock().waiting.remove(&self.id);
    }
}

async fn drive(caller: Caller, queue: mpsc::Receiver<v1::SessionRequest>, calls: Arc<Calls>) {
    let error = match caller.open(SESSION, None).await {
        Ok((response, mut stream)) => tokio::select! {
            error = read(response, &calls) => error,
            // Why a stream takes nothing more is told where it is read.
            error = async {
                match write(queue, &mut stream, &calls).await {
                    Err(error) => error,
                    Ok(()) => pending().await,
                }
            } => error,
        },
        Err(error) => error,
    };
    tracing::debug!(%error, "session ended");
    calls.end(&error);
}

/// Hands out answers until the stream ends.
async fn read(response: ResponseFuture, calls: &Calls) -> CallError {
    let mut answers = match Messages::begin(response).await {
        Ok(answers) => answers,
        // Refused as a whole, before any operation was looked at: the node's own word counts for each.
        Err(error) => return error,
    };
    loop {
        let v1::SessionResponse { id, outcome } = match answers.next().await {
            Ok(Some(response)) => response,
            Ok(None) => return CallError::Broken("the node has ended the session".to_owned()),
            // A node ends a session with a status of its own once it has answered whatever it had taken up. What
            // others say in its place proves nothing, and is told as such.
            Err(error) => return error,
        };
        match outcome.and_then(|outcome| outcome.outcome) {
            Some(Outcome::Failed(failure)) => calls.answer(id, Err(CallError::Failure(failure))),
            Some(outcome) => calls.answer(id, Ok(outcome)),
            None => calls.answer(id, Err(CallError::BadAnswer("it has no outcome".to_owned()))),
        }
    }
}

/// Sends what is queued until the stream takes nothing more. Fails on a request that cannot be sent at all.
async fn write(
    mut queue: mpsc::Receiver<v1::SessionRequest>,
    stream: &mut SendStream<Bytes>,
    calls: &Calls,
) -> Result<(), CallError> {
    let mut piece = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(request) = next {
            if calls.note_sent(request.id) {
                frame(&request, &mut piece)?;
            }
            next = if piece.len() < PIECE_BYTES { queue.try_recv().ok() } else { None };
        }
        if !send(stream, piece.split().freeze()).await {
            return Ok(());
        }
    }
    Ok(())
}

/// As fast as the other side takes it; false once it takes nothing more.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // What is left of an earlier reservation is not told again.
        if stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return false,
            }
        }
        let part = data.split_to(stream.capacity().min(data.len()));
        if !part.is_empty() && stream.send_data(part, false).is_err() {
            return false;
        }
    }
    true
}
