//! The tasks of the IO thread: started together, watched, and ended in order.
//!
//! Told to stop, the node first says that it is not ready, so that others look elsewhere, and goes on serving; then
//! it takes no new requests, waits for those under way and closes its servers. A task, or the core thread, that
//! ends by itself ends the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::Event;
use keystore_core::id::{Actor, Generation, NodeId};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::deliver::deliver;
use crate::disk::DiskGuard;
use crate::disk_metrics::DiskMetrics;
use crate::gauges::Gauges;
use crate::gossip::{Gossip, GossipError, Gossiped, SelfAddresses};
use crate::grpc::{AdminService, KeyStoreService, Listener, ServeError, follow_readiness};
use crate::handle::CoreHandle;
use crate::http::Pages;
use crate::metrics::{PREFIX, RequestMetrics, registry};
use crate::outbox::Outbox;
use crate::peers::{Links, Peers, PeersError};
use crate::services::{ClientServices, ReflectionError, peer_services};
use crate::storage::{Counters, RunningStorage};

/// How long servers and links may take to close; each has a limit of its own that is shorter.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon the end of the last request is noticed.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Error)]
pub enum TasksError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot listen on {address} for http: {source}")]
    Http { address: SocketAddr, source: std::io::Error },
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
    #[error("the core thread ended by itself")]
    CoreEnded,
    #[error("told to stop a second time")]
    StoppedAtOnce,
}

impl TasksError {
    /// True if no other start could use this data directory either.
    pub fn is_about_the_disk(&self) -> bool {
        matches!(self, Self::Peers(PeersError::StaleGeneration(_)))
    }
}

/// What the threads and the data directory give to the tasks.
pub struct Parts {
    pub config: Arc<Config>,
    pub node: NodeId,
    pub actor: Actor,
    pub generation: Generation,
    pub core: CoreHandle,
    pub stopping: watch::Sender<bool>,
    pub outboxes: mpsc::Receiver<Outbox>,
    pub core_ended: oneshot::Receiver<RunningStorage>,
    pub disk: DiskGuard,
    pub counters: Arc<Counters>,
}

/// The name of a task that has ended as it was told to.
type Ended = Result<&'static str, TasksError>;

struct Tasks {
    config: Arc<Config>,
    core: CoreHandle,
    stopping: watch::Sender<bool>,
    core_ended: oneshot::Receiver<RunningStorage>,
    set: JoinSet<Ended>,
    cancelled: CancellationToken,
}

impl Parts {
    /// Returns the disk once everything has ended as it should.
    pub async fn run(self) -> Result<RunningStorage, TasksError> {
        let mut terminate = Signals::watch().map_err(TasksError::Signals)?;
        let mut tasks = self.start().await?;
        let told = tokio::select! {
            () = terminate.next() => Ok(()),
            error = tasks.watch() => Err(error),
        };
        told?;
        tokio::select! {
            ended = tasks.drain_and_close() => ended,
            () = terminate.next() => Err(TasksError::StoppedAtOnce),
        }
    }

    /// Binds every socket before anything is started.
    async fn start(self) -> Result<Tasks, TasksError> {
        let listen = self.config.listen;
        let limits = &self.config.limits;
        let client_listener = Listener::bind("clients", listen.client, limits).await?;
        let peer_listener = Listener::bind("peers", listen.peer, limits).await?;
        let http_listener = TcpListener::bind(listen.http)
            .await
            .map_err(|source| TasksError::Http { address: listen.http, source })?;
        let (gossiped, gossiped_seen) = watch::channel(Arc::new(Gossiped::new()));
        let (ours, ours_seen) = watch::channel(SelfAddresses::of_listeners(&listen));
        let links = Arc::new(Links::new(limits.link_queue_bytes));
        let disk_seen = self.disk.watch();
        let (peers, peer_service) =
            Peers::new(self.core.clone(), Arc::clone(&links), self.node, gossiped_seen.clone());
        let admin = AdminService {
            core: self.core.clone(),
            config: Arc::clone(&self.config),
            node: self.node,
            actor: self.actor,
            generation: self.generation,
            gossiped: gossiped_seen.clone(),
            ours: ours_seen.clone(),
            disk: disk_seen.clone(),
        };
        let mut registry = registry();
        let metrics = registry.sub_registry_with_prefix(PREFIX);
        let requests = RequestMetrics::register(metrics);
        metrics.register_collector(Box::new(Gauges {
            core: self.core.clone(),
            links: Arc::clone(&links),
            gossiped: gossiped_seen.clone(),
            disk: disk_seen.clone(),
        }));
        metrics.register_collector(Box::new(DiskMetrics(self.counters)));
        let key_store =
            KeyStoreService::new(self.core.clone(), self.node, gossiped_seen, ours_seen, requests);
        let (client_services, health) = ClientServices::new(key_store).await?;
        let peer_services = peer_services(peer_service, admin).await?;
        let gossip = Gossip {
            config: Arc::clone(&self.config),
            node: self.node,
            generation: self.generation,
            core: self.core.clone(),
            disk: disk_seen,
            gossiped,
            ours,
        };
        let pages = Pages { core: self.core.clone(), registry: Arc::new(registry) };

        let mut tasks = Tasks {
            config: self.config,
            core: self.core.clone(),
            stopping: self.stopping,
            core_ended: self.core_ended,
            set: JoinSet::new(),
            cancelled: CancellationToken::new(),
        };
        let cancelled = tasks.cancelled.clone();
        let core = self.core;
        tasks.spawn("deliver", {
            let delivering = deliver(self.outboxes, links);
            async {
                delivering.await;
                Ok(())
            }
        });
        tasks.spawn("peers", {
            let running = peers.run(cancelled.clone());
            async { Ok(running.await?) }
        });
        tasks.spawn("gossip", {
            let running = gossip.run(cancelled.clone());
            async { Ok(running.await?) }
        });
        tasks.spawn("disk", {
            let running = self.disk.run(core.clone(), cancelled.clone());
            async {
                running.await;
                Ok(())
            }
        });
        tasks.spawn("health", {
            let following = follow_readiness(health, core, cancelled.clone());
            async {
                following.await;
                Ok(())
            }
        });
        tasks.spawn("clients", {
            let serving = client_listener.serve(client_services, cancelled.clone());
            async { Ok(serving.await?) }
        });
        tasks.spawn("administrators", {
            let serving = peer_listener.serve(peer_services, cancelled.clone());
            async { Ok(serving.await?) }
        });
        tasks.spawn("http", {
            let serving = pages.serve(http_listener, cancelled);
            async move { serving.await.map_err(|source| TasksError::Http { address: listen.http, source }) }
        });
        info!(client = %listen.client, peer = %listen.peer, http = %listen.http, gossip = %listen.gossip, "node listens");
        Ok(tasks)
    }
}

impl Tasks {
    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), TasksError>> + Send + 'static,
    ) {
        self.set.spawn(async move {
            task.await?;
            Ok(name)
        });
    }

    /// Returns when something has ended that nobody told to.
    async fn watch(&mut self) -> TasksError {
        tokio::select! {
            // The thread hands over the disk when it is told to stop, and nothing when it panics.
            _ = &mut self.core_ended => TasksError::CoreEnded,
            Some(ended) = self.set.join_next() => match flatten(ended) {
                Ok(name) => TasksError::Ended(name),
                Err(error) => error,
            },
        }
    }

    async fn drain_and_close(mut self) -> Result<RunningStorage, TasksError> {
        let started = Instant::now();
        let drain = self.config.drain;
        info!(grace_ms = drain.grace_ms, timeout_ms = drain.timeout_ms, "told to stop, draining");
        self.stopping.send_replace(true);
        self.watched(sleep(Duration::from_millis(drain.grace_ms))).await?;
        let told_ms = self.core.clock().mono_ms();
        self.core.tell(Event::Drain);
        let core = self.core.clone();
        let idle = async move {
            loop {
                let view = core.view();
                if view.published_ms >= told_ms && view.requests_under_way == 0 {
                    return;
                }
                sleep(DRAIN_LOOK_EVERY).await;
            }
        };
        let in_time = timeout(Duration::from_millis(drain.timeout_ms), idle);
        if self.watched(in_time).await?.is_err() {
            warn!("requests are still under way at the end of the drain, their outcome is unknown");
        }
        // What the core still owes an answer to ends with an unknown outcome, told while there is a connection.
        self.core.stop();
        let running = (&mut self.core_ended).await.map_err(|_| TasksError::CoreEnded)?;
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

fn flatten(ended: Result<Ended, JoinError>) -> Ended {
    let ended = ended.map_err(TasksError::from)?;
    if let Err(error) = &ended {
        error!(%error, "a task has failed");
    }
    ended
}

/// SIGTERM, and SIGINT for people at a terminal.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
