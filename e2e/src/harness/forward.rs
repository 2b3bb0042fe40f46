//! Port-forwards: a listener on loopback for each pod, through the API server, as `kubectl port-forward` does it.
//!
//! A pod is named, not remembered: after it was replaced under the same name, new connections reach the new one. A
//! pod that is away closes them at once, as a dead server would. A Service has one listener for all its pods.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use keystore_client::AdminClient;
use keystore_history::{Key, ReadOutcome};
use kube::{Api, ResourceExt};
use tokio::io::copy;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::ksc::{ADMIN_PORT, CLIENT_PORT, is_ready, pod_names, pod_names_of};
use super::sandbox::{Sandbox, store_pods};
use super::wait::{Look, until};
use crate::store::ClientStore;

/// How many keys are compared at a time.
const KEYS_AT_ONCE: usize = 16;
/// More at once would be a leak.
const CONNECTIONS_MAX: usize = 64;

/// Where connections are carried to.
#[derive(Clone)]
struct Target {
    pods: Api<Pod>,
    choice: Choice,
    port: u16,
    turn: Arc<AtomicUsize>,
    /// How many connections there were so far.
    connections: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Choice {
    Pod(String),
    /// Not before the pod is ready, and no new ones once it is not or was told to end.
    PodIfReady(String),
    /// As a Service does it: one after the other of those that are ready.
    Service,
}

impl Target {
    /// The pod of a connection.
    async fn choose(&self) -> Result<String> {
        match &self.choice {
            Choice::Pod(pod) => Ok(pod.clone()),
            Choice::PodIfReady(pod) => {
                ensure!(is_ready(&self.pods.get(pod).await?), "{pod} is not ready");
                Ok(pod.clone())
            }
            Choice::Service => {
                let pods = self.pods.list(&store_pods()).await?.items;
                let mut ready: Vec<_> =
                    pods.iter().filter(|pod| is_ready(pod)).map(|pod| pod.name_any()).collect();
                ready.sort();
                ensure!(!ready.is_empty(), "no pod is ready");
                let next = self.turn.fetch_add(1, Ordering::Relaxed) % ready.len();
                Ok(ready.swap_remove(next))
            }
        }
    }
}

/// Ends, with its connections, when it is dropped.
pub struct Forward {
    /// host:port on loopback.
    pub address: String,
    connections: Arc<AtomicUsize>,
    _listener: AbortOnDropHandle<()>,
}

impl Forward {
    async fn open(target: Target) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?.to_string();
        let connections = Arc::clone(&target.connections);
        let task = tokio::spawn(serve(listener, target));
        Ok(Self { address, connections, _listener: AbortOnDropHandle::new(task) })
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, target: Target) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let Ok((connection, _)) = listener.accept().await else { continue };
        let target = target.clone();
        connections.spawn(async move {
            if let Err(error) = carry(connection, &target).await {
                debug!(error = format!("{error:#}"), "forwarded connection ended");
            }
        });
    }
}

/// Until either side ends: half a connection is of no use to anybody here.
async fn carry(mut local: TcpStream, target: &Target) -> Result<()> {
    let (pods, port) = (&target.pods, target.port);
    local.set_nodelay(true)?;
    let mut forwarder = pods.portforward(&target.choose().await?, &[port]).await?;
    let remote = forwarder.take_stream(port).context("no stream")?;
    target.connections.fetch_add(1, Ordering::Relaxed);
    let (mut remote_read, mut remote_write) = tokio::io::split(remote);
    let (mut local_read, mut local_write) = local.split();
    let ended = tokio::select! {
        ended = copy(&mut local_read, &mut remote_write) => ended,
        ended = copy(&mut remote_read, &mut local_write) => ended,
    };
    forwarder.abort();
    ended?;
    Ok(())
}

/// The store through forwards to its pods. The forwards live as long as this.
pub struct ForwardedStore {
    pub store: ClientStore,
    _forwards: Vec<Forward>,
}

impl ForwardedStore {
    async fn connect(forwards: Vec<Forward>) -> Result<Self> {
        let endpoints = forwards.iter().map(|forward| forward.address.clone()).collect();
        let store = ClientStore::connect(endpoints)
            .await
            .context("no client connection through the port-forwards")?;
        Ok(Self { store, _forwards: forwards })
    }
}

impl Sandbox {
    pub async fn forward(&self, pod: &str, port: u16) -> Result<Forward> {
        self.open_forward(Choice::Pod(pod.to_owned()), port).await
    }

    async fn open_forward(&self, choice: Choice, port: u16) -> Result<Forward> {
        Forward::open(Target {
            pods: self.api(),
            choice,
            port,
            turn: Arc::default(),
            connections: Arc::default(),
        })
        .await
    }

    pub async fn connect_store(&self) -> Result<ForwardedStore> {
        self.connect_store_through(&pod_names()).await
    }

    /// The store as those see it who reach these pods only.
    pub async fn connect_store_through(&self, pods: &[String]) -> Result<ForwardedStore> {
        let mut forwards = Vec::new();
        for pod in pods {
            forwards.push(self.forward(pod, CLIENT_PORT).await?);
        }
        ForwardedStore::connect(forwards).await
    }

    /// The store as its Service shows it: through so many pods, also those that come and go. Each is connected to as soon
    /// as it is ready, and no longer once it is not.
    pub async fn connect_service(&self, pods: i32) -> Result<ForwardedStore> {
        let mut forwards = Vec::new();
        for pod in pod_names_of(pods) {
            forwards.push(self.open_forward(Choice::PodIfReady(pod), CLIENT_PORT).await?);
        }
        ForwardedStore::connect(forwards).await
    }

    /// The Service as one address: each connection reaches the next pod that is ready.
    pub async fn forward_service(&self) -> Result<Forward> {
        self.open_forward(Choice::Service, CLIENT_PORT).await
    }

    /// Waits until every node of a store with a copy on each says the same of these keys when it is asked alone. Says
    /// how many keys those are.
    pub async fn wait_converged(&self, keys: &BTreeSet<Key>, within: Duration) -> Result<usize> {
        let mut nodes = Vec::new();
        for pod in pod_names() {
            nodes.push(self.connect_store_through(&[pod]).await?);
        }
        let left = Mutex::new(keys.clone());
        until("every node holds the same", within, || async {
            let asked = std::mem::take(&mut *left.lock().unwrap_or_else(PoisonError::into_inner));
            let asked: Vec<_> = asked.into_iter().collect();
            let mut differing = Vec::new();
            for keys in asked.chunks(KEYS_AT_ONCE) {
                differing.extend(
                    join_all(keys.iter().map(|key| differs(key, &nodes))).await.into_iter().flatten(),
                );
            }
            let count = differing.len();
            let Some(first) = differing.first().cloned() else { return Ok(Look::Done(keys.len())) };
            left.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(differing.into_iter().map(|(key, _)| key));
            Ok(Look::NotYet(format!("{count} keys differ, the first {first:?}")))
        })
        .await
    }

    /// The Admin service of one pod; the forward lives as long as it is held.
    pub async fn connect_admin(&self, pod: &str) -> Result<(AdminClient, Forward)> {
        let forward = self.forward(pod, ADMIN_PORT).await?;
        let admin = AdminClient::connect(forward.address.clone()).await?;
        Ok((admin, forward))
    }
}

/// The key with what each node has of it, if that is not the same.
async fn differs(key: &Key, nodes: &[ForwardedStore]) -> Option<(Key, Vec<ReadOutcome>)> {
    let held = join_all(nodes.iter().map(|node| node.store.get_at_one(key))).await;
    let is_same = held.iter().all(|one| one.is_answered() && Some(one) == held.first());
    (!is_same).then(|| (key.clone(), held))
}
