//! The tasks of the IO thread: watched, and ended in order.
//!
//! Told to stop, the node first says that it is not ready, so that others look elsewhere, and goes on serving; then it asks
//! those clients to go that are connected to it, and serves them for a moment more; then it takes no new requests, waits for
//! those under way and closes its servers. A task, or the core thread, that ends by itself ends the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::Event;
use keystore_core::node::NodeState;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::core_loop::CoreError;
use crate::gossip::GossipError;
use crate::grpc::ServeError;
use crate::handle::CoreHandle;
use crate::peers::PeersError;
use crate::services::ReflectionError;
use crate::storage::RunningStorage;

/// How long servers and links may take to close; each has a limit of its own that is shorter.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The end of a node's grace, in which clients hear that they are to go, and what they have sent until then comes.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);
/// How soon the end of the last request is noticed.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Error)]
pub enum TasksError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot listen on {address} for http: {source}")]
    BindHttp { address: SocketAddr, source: std::io::Error },
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error(transparent)]
    Gossip(#[from] GossipError),
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
    #[error("a task ended in a panic: {0}")]
    Panicked(#[from] JoinError),
    #[error("the task \"{0}\" ended by itself")]
    Ended(&'static str),
    #[error("the core thread ended: {0}")]
    Core(#[from] CoreError),
    #[error("the core thread ended by itself")]
    CoreEnded,
    #[error("told to stop a second time")]
    StoppedAtOnce,
}

impl TasksError {
    /// True if no other start could use this data directory either.
    pub fn is_about_the_disk(&self) -> bool {
        matches!(self, Self::Core(CoreError::SetAside(_)))
    }
}

/// The name of a task that has ended as it was told to.
type Ended = Result<&'static str, TasksError>;

/// How the core thread is told to stop, and how it says that it has.
pub struct CoreEnd {
    pub stopping: watch::Sender<bool>,
    /// Yields the disk at a stop, or why the thread could not go on.
    pub ended: oneshot::Receiver<Result<RunningStorage, CoreError>>,
}

/// All tasks, and what ends them.
pub struct Tasks {
    config: Arc<Config>,
    core: CoreHandle,
    core_end: CoreEnd,
    set: JoinSet<Ended>,
    leaving: CancellationToken,
    cancelled: CancellationToken,
}

impl Tasks {
    pub fn new(config: Arc<Config>, core: CoreHandle, core_end: CoreEnd) -> Self {
        let cancelled = CancellationToken::new();
        Self { config, core, core_end, set: JoinSet::new(), leaving: cancelled.child_token(), cancelled }
    }

    /// Asks clients to go elsewhere, who are still served; at the latest when every task is ended.
    pub fn leaving(&self) -> CancellationToken {
        self.leaving.clone()
    }

    /// Ends every task, after the core thread.
    pub fn cancelled(&self) -> CancellationToken {
        self.cancelled.clone()
    }

    pub fn spawn<E: Into<TasksError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.set.spawn(async move {
            task.await.map_err(Into::into)?;
            Ok(name)
        });
    }

    /// For a task that cannot fail.
    pub fn spawn_sure(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            Ok(name)
        });
    }

    /// Until told to stop, and then to the end of the drain: returns the disk once everything else has ended.
    pub async fn run(mut self, mut told: Signals) -> Result<RunningStorage, TasksError> {
        tokio::select! {
            () = told.next() => {}
            error = self.watch() => return Err(error),
        }
        tokio::select! {
            ended = self.drain_and_close() => ended,
            () = told.next() => Err(TasksError::StoppedAtOnce),
        }
    }

    /// Returns when something has ended that nobody told to.
    async fn watch(&mut self) -> TasksError {
        tokio::select! {
            ended = &mut self.core_end.ended => match ended {
                Ok(Err(error)) => error.into(),
                // Nobody told it to stop.
                Ok(Ok(_)) | Err(_) => TasksError::CoreEnded,
            },
            Some(ended) = self.set.join_next() => match flatten(ended) {
                // A task may end because the core has; why the core has ended is what counts.
                Ok(name) => match timeout(CLOSE_TIMEOUT, &mut self.core_end.ended).await {
                    Ok(Ok(Err(error))) => error.into(),
                    Ok(Ok(Ok(_)) | Err(_)) | Err(_) => TasksError::Ended(name),
                },
                Err(error) => error,
            },
        }
    }

    async fn drain_and_close(mut self) -> Result<RunningStorage, TasksError> {
        let started = Instant::now();
        let drain = self.config.drain;
        info!(grace_ms = drain.grace_ms, timeout_ms = drain.timeout_ms, "told to stop, draining");
        self.core_end.stopping.send_replace(true);
        let grace = Duration::from_millis(drain.grace_ms);
        let leave_within = LEAVE_WITHIN.min(grace / 2);
        self.watched(sleep(grace - leave_within)).await?;
        // Nobody is sent here any more, but those that are here stay until they are asked to go.
        self.leaving.cancel();
        self.watched(sleep(leave_within)).await?;
        self.core.tell(Event::Drain);
        let in_time = timeout(Duration::from_millis(drain.timeout_ms), idle(self.core.clone()));
        if self.watched(in_time).await?.is_err() {
            warn!("requests are still under way at the end of the drain, their outcome is unknown");
        }
        // What the core still owes an answer to ends with an unknown outcome, told while there is a connection.
        self.core.stop();
        let running = (&mut self.core_end.ended).await.map_err(|_| TasksError::CoreEnded)??;
        self.cancelled.cancel();
        self.close().await?;
        info!(elapsed_ms = started.elapsed().as_millis() as u64, "drained");
        Ok(running)
    }

    /// The work's result, unless something ends that nobody told to.
    async fn watched<T>(&mut self, work: impl Future<Output = T>) -> Result<T, TasksError> {
        tokio::select! {
            done = work => Ok(done),
            error = self.watch() => Err(error),
        }
    }

    async fn close(&mut self) -> Result<(), TasksError> {
        let closing = async {
            while let Some(ended) = self.set.join_next().await {
                flatten(ended)?;
            }
            Ok(())
        };
        timeout(CLOSE_TIMEOUT, closing).await.unwrap_or_else(|_| {
            warn!("some tasks did not end in time");
            Ok(())
        })
    }
}

/// Until the core, told to drain just now, has no client's request under way. Before it has heard of that, it may
/// take one at any moment.
async fn idle(core: CoreHandle) {
    let told_ms = core.clock().mono_ms();
    loop {
        let view = core.view();
        let has_heard = view.state != NodeState::Serving && view.published_ms > told_ms;
        if has_heard && view.requests_under_way == 0 {
            return;
        }
        sleep(DRAIN_LOOK_EVERY).await;
    }
}

fn flatten(ended: Result<Ended, JoinError>) -> Ended {
    let ended = ended.map_err(TasksError::from)?;
    if let Err(error) = &ended {
        error!(%error, "a task has failed");
    }
    ended
}

/// SIGTERM, and SIGINT for people at a terminal. What comes before anybody asks is kept.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn watch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::clock::Clock;
    use crate::inbox::Inbox;
    use crate::view::View;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_once_the_core_has_heard_of_it_and_nothing_is_under_way() {
        let clock = Clock::new(0);
        let soon_ms = clock.mono_ms() + 60_000;
        let view = |state, requests_under_way, published_ms| {
            Arc::new(View { state, requests_under_way, published_ms, ..View::starting() })
        };
        let (shown, seen) = watch::channel(view(NodeState::Serving, 0, soon_ms));
        let core = CoreHandle::new(Arc::new(Inbox::new(1)), seen, watch::channel(true).1, clock);
        assert!(idle(core.clone()).now_or_never().is_none(), "it may take a request before it hears");
        for (state, under_way, published_ms, is_idle) in [
            (NodeState::Draining, 1, soon_ms, false),
            (NodeState::Draining, 0, soon_ms, true),
            // What was shown before says nothing, and a node that does not serve has nothing to end.
            (NodeState::Accepted, 0, 0, false),
            (NodeState::Accepted, 0, soon_ms, true),
        ] {
            shown.send_replace(view(state, under_way, published_ms));
            let is_done = idle(core.clone()).now_or_never().is_some();
            assert_eq!(is_done, is_idle, "{state:?}, {under_way} under way");
        }
    }
}
