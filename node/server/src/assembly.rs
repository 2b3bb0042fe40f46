//! How the tasks are put together: sockets first, then services, then everything is spawned.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::about::{About, Gossiped, SelfAddresses};
use crate::config::Config;
use crate::core_metrics::CoreMetrics;
use crate::deliver::deliver;
use crate::disk::DiskGuard;
use crate::disk_metrics::DiskMetrics;
use crate::gauges::Gauges;
use crate::gossip::Gossip;
use crate::grpc::{AdminService, CLIENT_WINDOWS, KeyStoreService, Listener, PEER_WINDOWS, follow_readiness};
use crate::http::Pages;
use crate::metrics::{PREFIX, RequestMetrics, registry};
use crate::outbox::Outbox;
use crate::peers::{Links, Peers};
use crate::services::{ClientServices, peer_services};
use crate::storage::{Counters, RunningStorage};
use crate::tasks::{CoreEnd, Signals, Tasks, TasksError};

/// What the threads and the data directory give to the tasks.
pub struct Parts {
    pub about: About,
    pub gossiped: watch::Sender<Arc<Gossiped>>,
    pub ours: watch::Sender<SelfAddresses>,
    pub outboxes: mpsc::Receiver<Outbox>,
    pub core_end: CoreEnd,
    pub disk_guard: DiskGuard,
    pub counters: Arc<Counters>,
}

/// Bound before anything is started, so that a port that is taken costs nothing.
struct Sockets {
    client: Listener,
    peer: Listener,
    http: TcpListener,
}

impl Sockets {
    async fn bind(config: &Config) -> Result<Self, TasksError> {
        let (listen, limits) = (&config.listen, &config.limits);
        let bound = Self {
            client: Listener::bind("clients", listen.client, limits, CLIENT_WINDOWS).await?,
            peer: Listener::bind("peers", listen.peer, limits, PEER_WINDOWS).await?,
            http: TcpListener::bind(listen.http)
                .await
                .map_err(|source| TasksError::BindHttp { address: listen.http, source })?,
        };
        info!(client = %listen.client, peer = %listen.peer, http = %listen.http, "node listens");
        Ok(bound)
    }
}

impl Parts {
    /// Runs until told to stop; returns the disk, which has to be shut down after.
    pub async fn run(self, signals: Signals) -> Result<RunningStorage, TasksError> {
        let sockets = Sockets::bind(&self.about.config).await?;
        let tasks = self.start(sockets).await?;
        tasks.run(signals).await
    }

    async fn start(self, sockets: Sockets) -> Result<Tasks, TasksError> {
        let Self { about, gossiped, ours, outboxes, core_end, disk_guard, counters } = self;
        let mut tasks = Tasks::new(Arc::clone(&about.config), about.core.clone(), core_end);
        let links = Arc::new(Links::new(about.config.limits.link_queue_bytes));
        let (peers, peer_service) = Peers::new(&about, Arc::clone(&links));
        let (registry, requests) = build_metrics(&about, &links, counters);
        let key_store = KeyStoreService::new(about.clone(), requests, tasks.cancelled());
        let (client_services, health) = ClientServices::new(key_store).await?;
        let peer_services = peer_services(peer_service, AdminService { about: about.clone() }).await?;
        let pages = Pages { core: about.core.clone(), registry: Arc::new(registry) };
        let gossip = Gossip { about: about.clone(), gossiped, ours };

        let cancelled = tasks.cancelled();
        tasks.spawn_sure("deliver", deliver(outboxes, links));
        let (core, until) = (about.core.clone(), cancelled.clone());
        tasks.spawn_sure("waker", async move {
            until.run_until_cancelled(core.wake_in_turn()).await.unwrap_or_default();
        });
        tasks.spawn("peers", peers.run(cancelled.clone()));
        tasks.spawn("gossip", gossip.run(cancelled.clone()));
        tasks.spawn_sure("disk", disk_guard.run(about.core.clone(), cancelled.clone()));
        tasks.spawn_sure("health", follow_readiness(health, about.core, cancelled.clone()));
        tasks.spawn("clients", sockets.client.serve(client_services, tasks.leaving(), cancelled.clone()));
        tasks
            .spawn("administrators", sockets.peer.serve(peer_services, cancelled.clone(), cancelled.clone()));
        tasks.spawn("http", pages.serve(sockets.http, cancelled));
        Ok(tasks)
    }
}

fn build_metrics(about: &About, links: &Arc<Links>, counters: Arc<Counters>) -> (Registry, RequestMetrics) {
    let mut registry = registry();
    let ours = registry.sub_registry_with_prefix(PREFIX);
    let requests = RequestMetrics::register(ours);
    ours.register_collector(Box::new(Gauges { about: about.clone(), links: Arc::clone(links) }));
    ours.register_collector(Box::new(CoreMetrics(about.core.clone())));
    ours.register_collector(Box::new(DiskMetrics(counters)));
    (registry, requests)
}
