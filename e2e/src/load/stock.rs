//! Clients as a gRPC library makes them: one address, no retries of their own. In a planned change nobody refuses them.
//!
//! Each writes and reads a key of its own, one request at a time. What they promise themselves of a store is little: that
//! every request is answered, and that they read what they wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keystore_proto::unseen::was_unseen;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::harness::forward::Forward;
use crate::store::REQUEST_TIMEOUT;

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// How often one request meets a connection that is closing.
const UNSEEN_MAX: usize = 3;

/// Clients under way; dropping them ends them.
pub struct StockClients {
    stop: CancellationToken,
    requests: Arc<AtomicUsize>,
    clients: JoinSet<Result<()>>,
    connections: usize,
    forward: Forward,
}

impl StockClients {
    /// Through a Service of so many pods, two connected to each; returns once each client is answered.
    pub async fn start(forward: Forward, pods: i32) -> Result<Self> {
        let count = 2 * u32::try_from(pods)?;
        let (stop, requests) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for id in 0..count {
            let channel = Endpoint::from_shared(format!("http://{}", forward.address))?.connect().await?;
            let mut client = StockClient { id, writes: 0, client: KeyStoreClient::new(channel) };
            client.write_and_read().await?;
            clients.spawn(client.run(stop.clone(), Arc::clone(&requests)));
        }
        let connections = forward.connections();
        Ok(Self { stop, requests, clients, connections, forward })
    }

    /// Fails if a request has failed, or if none of them had to go elsewhere: then nothing was shown. Says how much they did.
    pub async fn stop(mut self) -> Result<String> {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        let (requests, moved) =
            (self.requests.load(Ordering::Relaxed), self.forward.connections() - self.connections);
        ensure!(moved > 0, "no client had to go elsewhere");
        Ok(format!("{requests} requests of stock clients, which went elsewhere {moved} times"))
    }
}

struct StockClient {
    id: u32,
    writes: u64,
    client: KeyStoreClient<Channel>,
}

impl StockClient {
    async fn run(mut self, stop: CancellationToken, requests: Arc<AtomicUsize>) -> Result<()> {
        let started = Instant::now();
        while !stop.is_cancelled() {
            self.write_and_read().await.with_context(|| {
                format!("stock client {}, {} ms after its start", self.id, started.elapsed().as_millis())
            })?;
            requests.fetch_add(2, Ordering::Relaxed);
            // The pace of the load.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn write_and_read(&mut self) -> Result<()> {
        self.writes += 1;
        let (key, value) = (format!("stock-{}", self.id), self.writes.to_string());
        let put = v1::PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            ..v1::PutRequest::default()
        };
        let get = v1::GetRequest { key: key.into(), ..v1::GetRequest::default() };
        until_seen(|| {
            let (mut client, put) = (self.client.clone(), request(put.clone()));
            async move { client.put(put).await }
        })
        .await
        .context("a put")?;
        let read = until_seen(|| {
            let (mut client, get) = (self.client.clone(), request(get.clone()));
            async move { client.get(get).await }
        });
        let read = read.await.context("a get")?.into_inner();
        let values: Vec<_> = read.values.into_iter().map(|found| found.value).collect();
        ensure!(values == [value.as_bytes()], "wrote {value} and read {values:?}");
        Ok(())
    }
}

/// Sends again what tonic gives back unsent, as other gRPC libraries do by themselves.
async fn until_seen<T, F: Future<Output = Result<T, Status>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, Status> {
    for _ in 0..UNSEEN_MAX {
        match call().await {
            Err(status) if was_unseen(&status) => {}
            outcome => return outcome,
        }
    }
    call().await
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(REQUEST_TIMEOUT);
    request
}
