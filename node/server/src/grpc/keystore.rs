//! The service for clients: checks requests, hands them to the core, tells their outcome.

use std::sync::Arc;

use keystore_core::effect::{Answer, Deadline, FailureReason, Operation};
use keystore_core::quorum::Durability;
use keystore_core::stamp::Stamp;
use keystore_proto::client::{Request as Checked, durability_to_wire, read_response};
use keystore_proto::error::WireError;
use keystore_proto::v1;
use keystore_proto::v1::key_store_server::KeyStore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Request, Response, Status};

use super::outcome::{failed, invalid, lost, refused};
use super::timeout::timeout_ms;
use crate::about::About;
use crate::handle;
use crate::metrics::{Kind, RequestMetrics};

/// What a read is counted as before it is known how large its values are.
const GET_BYTES: u32 = 64 << 10;

#[derive(Debug, Clone)]
pub struct KeyStoreService {
    about: About,
    metrics: RequestMetrics,
    /// How many more bytes of values may be held for requests under way.
    bytes_left: Arc<Semaphore>,
}

/// What a write has reached.
struct Written {
    stamp: Stamp,
    acks: usize,
    durability: Durability,
}

impl KeyStoreService {
    pub fn new(about: About, metrics: RequestMetrics) -> Self {
        let bytes_left = Arc::new(Semaphore::new(about.config.limits.request_bytes));
        Self { about, metrics, bytes_left }
    }

    /// From request to answer. Once the core has it, no error says that nothing was applied unless the core does.
    async fn perform<T>(&self, kind: Kind, request: Request<T>) -> Result<Answer, Status>
    where
        Checked: TryFrom<T, Error = WireError>,
    {
        let timer = self.metrics.start(kind);
        let result = self.ask(kind, request).await;
        timer.stop(result.as_ref().map_or_else(Status::code, |_| Code::Ok));
        result
    }

    async fn ask<T>(&self, kind: Kind, request: Request<T>) -> Result<Answer, Status>
    where
        Checked: TryFrom<T, Error = WireError>,
    {
        let timeout_ms = timeout_ms(request.metadata())?;
        let checked = Checked::try_from(request.into_inner()).map_err(|error| invalid(&error))?;
        let Checked { operation, consistency, durability } = checked;
        let request = handle::Request {
            reserved: self.reserve(&operation)?,
            operation,
            consistency,
            durability,
            deadline: Deadline::after(self.about.core.clock().now(), timeout_ms),
        };
        let answered =
            self.about.core.request(request).map_err(|_full| refused(FailureReason::Overloaded))?;
        let is_read = kind == Kind::Get;
        match answered.await {
            Ok(Answer::Failed(failure)) => Err(failed(failure, is_read)),
            Ok(answer) => Ok(answer),
            Err(_stopped) => Err(lost(is_read)),
        }
    }

    async fn write<T>(&self, kind: Kind, request: Request<T>) -> Result<Written, Status>
    where
        Checked: TryFrom<T, Error = WireError>,
    {
        match self.perform(kind, request).await? {
            Answer::Written { stamp, acks, durability } => Ok(Written { stamp, acks, durability }),
            other => Err(unexpected(&other)),
        }
    }

    /// Memory for the value that a request carries or asks for, given back when dropped.
    fn reserve(&self, operation: &Operation) -> Result<OwnedSemaphorePermit, Status> {
        let bytes = match operation {
            Operation::Get { .. } => GET_BYTES,
            Operation::Delete { .. } => 0,
            Operation::Put { value, .. } => saturated(value.len()),
        };
        let left = Arc::clone(&self.bytes_left);
        left.try_acquire_many_owned(bytes).map_err(|_| refused(FailureReason::Overloaded))
    }
}

#[tonic::async_trait]
impl KeyStore for KeyStoreService {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        match self.perform(Kind::Get, request).await? {
            Answer::Read(record) => Ok(Response::new(read_response(record))),
            other => Err(unexpected(&other)),
        }
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let Written { stamp, acks, durability } = self.write(Kind::Put, request).await?;
        Ok(Response::new(v1::PutResponse {
            stamp: stamp.to_bytes().to_vec().into(),
            acks: saturated(acks),
            durability: durability_to_wire(durability).into(),
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let Written { stamp, acks, durability } = self.write(Kind::Delete, request).await?;
        Ok(Response::new(v1::DeleteResponse {
            stamp: stamp.to_bytes().to_vec().into(),
            acks: saturated(acks),
            durability: durability_to_wire(durability).into(),
        }))
    }

    async fn get_routing(
        &self,
        _request: Request<v1::GetRoutingRequest>,
    ) -> Result<Response<v1::GetRoutingResponse>, Status> {
        let view = self.about.core.view();
        let layout = view.layout.as_ref().ok_or_else(|| refused(FailureReason::NotInitialized))?;
        let nodes = layout.members.iter().map(|member| v1::RoutingNode {
            node_id: member.node.0.to_vec().into(),
            name: member.name.clone(),
            client_address: self.about.client_address(member.node),
        });
        let owners = layout.partitions.all().map(|partition| {
            let nodes = layout.replica_sets(partition).nodes();
            let index = |node| layout.members.iter().position(|member| member.node == node);
            v1::PartitionOwners { node: nodes.into_iter().filter_map(index).map(saturated).collect() }
        });
        Ok(Response::new(v1::GetRoutingResponse {
            epoch: layout.epoch.0,
            partitions: layout.partitions.get().into(),
            nodes: nodes.collect(),
            owners: owners.collect(),
        }))
    }
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The core answers each kind of request with its own kind of answer.
fn unexpected(answer: &Answer) -> Status {
    tracing::error!(?answer, "an answer of the wrong kind");
    Status::new(Code::Unknown, "the outcome is unknown: an answer of the wrong kind")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use futures::FutureExt as _;
    use keystore_core::id::{Actor, Generation, NodeId};
    use prometheus_client::registry::Registry;
    use tokio::sync::watch;

    use super::*;
    use crate::about::SelfAddresses;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::disk::DiskUse;
    use crate::handle::{CoreHandle, Input};
    use crate::inbox::Inbox;
    use crate::view::View;

    /// A service whose core takes what is in the inbox, or does not.
    fn service(config: Config) -> (KeyStoreService, Arc<Inbox<Input>>) {
        let inbox = Arc::new(Inbox::new(16));
        let view = watch::channel(Arc::new(View::starting())).1;
        let stopping = watch::channel(false).1;
        let about = About {
            node: NodeId([1; 16]),
            actor: Actor(1),
            generation: Generation(1),
            core: CoreHandle::new(Arc::clone(&inbox), view, stopping, Clock::new(0)),
            gossiped: watch::channel(Arc::default()).1,
            ours: watch::channel(SelfAddresses::of_listeners(&config.listen)).1,
            disk: watch::channel(DiskUse::default()).1,
            config: Arc::new(config),
        };
        (KeyStoreService::new(about, RequestMetrics::register(&mut Registry::default())), inbox)
    }

    #[test]
    fn memory_stays_reserved_while_the_core_has_the_request_of_a_caller_that_is_gone() {
        let (service, inbox) = service(Config::default());
        let all = service.bytes_left.available_permits();
        let put =
            v1::PutRequest { key: "k".into(), value: vec![7; 1000].into(), ..v1::PutRequest::default() };
        assert!(service.put(Request::new(put)).now_or_never().is_none(), "the core has not answered");
        assert_eq!(service.bytes_left.available_permits(), all - 1000);
        let get = v1::GetRequest { key: "k".into(), ..v1::GetRequest::default() };
        assert!(service.get(Request::new(get)).now_or_never().is_none(), "the core has not answered");
        assert_eq!(service.bytes_left.available_permits(), all - 1000 - GET_BYTES as usize);
        let mut batch = VecDeque::new();
        inbox.take(&mut batch, Duration::ZERO);
        assert_eq!(batch.len(), 2);
        drop(batch);
        assert_eq!(service.bytes_left.available_permits(), all);
    }

    #[test]
    fn more_reads_than_memory_allows_are_refused_at_once() {
        let mut config = Config::default();
        config.limits.request_bytes = 2 * GET_BYTES as usize;
        let (service, _inbox) = service(config);
        let get = || {
            let get = v1::GetRequest { key: "k".into(), ..v1::GetRequest::default() };
            service.get(Request::new(get)).now_or_never()
        };
        assert!(get().is_none());
        assert!(get().is_none());
        assert_eq!(get().unwrap().unwrap_err().code(), Code::ResourceExhausted);
    }
}
