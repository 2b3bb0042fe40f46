//! The fake's KeyStore service: operations from whichever call they come, each with the next misbehaviour.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use keystore_core::layout::Layout;
use keystore_core::partition::DEFAULT_KEYSPACE;
use keystore_proto::client::{Request as ClientRequest, reason};
use keystore_proto::v1;
use keystore_proto::v1::key_store_server::KeyStore;
use keystore_proto::v1::operation::Operation as Wire;
use keystore_proto::v1::outcome::Outcome;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::StatusExt;

use super::{Misbehaviour, Own, Shared, SharedRef, lock, outcome};
use crate::NodeState;

#[derive(Clone)]
pub(super) struct FakeKeyStore {
    pub own: Arc<Own>,
    pub shared: SharedRef,
}

impl FakeKeyStore {
    /// Serves an operation, or does what the script says.
    async fn serve(&self, operation: Wire) -> Result<Outcome, Status> {
        let script = self.next_script()?;
        let checked = ClientRequest::try_from(v1::Operation { operation: Some(operation) });
        let operation = checked.map_err(|problem| Status::invalid_argument(problem.to_string()))?.operation;
        let perform = || lock(&self.shared).records.perform(self.own.actor, operation);
        match script {
            None => perform(),
            Some(Misbehaviour::Answer(status)) => Err(status),
            Some(Misbehaviour::ApplyAndAnswer(status)) => perform().and(Err(status)),
            Some(Misbehaviour::Hang) => std::future::pending().await,
            Some(Misbehaviour::ApplyAndHang) => {
                perform()?;
                std::future::pending().await
            }
        }
    }

    /// Counts a request.
    fn next_script(&self) -> Result<Option<Misbehaviour>, Status> {
        *lock(&self.own.requests) += 1;
        let script = lock(&self.own.script).pop_front();
        match lock(&self.shared).state(self.own.node) {
            NodeState::Serving => Ok(script),
            _ => Err(outcome(Code::FailedPrecondition, reason::NOT_INITIALIZED, 0, 0)),
        }
    }

    async fn item(&self, operation: Option<v1::Operation>) -> v1::Outcome {
        let operation = operation.and_then(|operation| operation.operation);
        let served = match operation {
            Some(operation) => self.serve(operation).await,
            None => Err(Status::invalid_argument("no operation")),
        };
        v1::Outcome { outcome: Some(served.unwrap_or_else(|status| Outcome::Failed(failure(&status)))) }
    }
}

/// What an item of a batch or session says in place of a status.
fn failure(status: &Status) -> v1::Failure {
    let info = status.get_details_error_info();
    let count = |name: &str| info.as_ref()?.metadata.get(name)?.parse().ok();
    v1::Failure {
        code: status.code().into(),
        reason: info.as_ref().map_or(String::new(), |info| info.reason.clone()),
        message: status.message().to_owned(),
        acks: count("acks").unwrap_or_default(),
        needed: count("needed").unwrap_or_default(),
    }
}

fn other_outcome() -> Status {
    Status::internal("an outcome of another kind")
}

#[tonic::async_trait]
impl KeyStore for FakeKeyStore {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        match self.serve(Wire::Get(request.into_inner())).await? {
            Outcome::Got(response) => Ok(Response::new(response)),
            _ => Err(other_outcome()),
        }
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        match self.serve(Wire::Put(request.into_inner())).await? {
            Outcome::Put(response) => Ok(Response::new(response)),
            _ => Err(other_outcome()),
        }
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        match self.serve(Wire::Delete(request.into_inner())).await? {
            Outcome::Deleted(response) => Ok(Response::new(response)),
            _ => Err(other_outcome()),
        }
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::BatchResponse>, Status> {
        *lock(&self.own.batches) += 1;
        let mut outcomes = Vec::new();
        for operation in request.into_inner().operations {
            outcomes.push(self.item(Some(operation)).await);
        }
        Ok(Response::new(v1::BatchResponse { outcomes }))
    }

    type SessionStream = BoxStream<'static, Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        *lock(&self.own.sessions) += 1;
        let service = self.clone();
        let answer = move |request: Result<v1::SessionRequest, Status>| {
            let service = service.clone();
            async move {
                let v1::SessionRequest { id, timeout_ms: _, operation } = request?;
                Ok(v1::SessionResponse { id, outcome: Some(service.item(operation).await) })
            }
        };
        let mut end = self.own.session_end.subscribe();
        let (ended, told) = (end.clone(), async move {
            // The sender lives as long as this service.
            end.wait_for(Option::is_some).await.is_ok()
        });
        let answers = request.into_inner().map(answer).buffer_unordered(IN_FLIGHT_MAX).take_until(told);
        let last = stream::once(async move { Err(ended.borrow().clone().unwrap_or_else(other_outcome)) });
        Ok(Response::new(answers.chain(last).boxed()))
    }

    type ScanStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let script = self.next_script()?;
        let mut request = request.into_inner();
        if request.keyspace.is_empty() {
            request.keyspace = DEFAULT_KEYSPACE.to_owned();
        }
        let pages = lock(&self.shared).records.scan(&request)?;
        let first = stream::iter(pages.first().cloned()).map(Ok);
        Ok(Response::new(match script {
            None => stream::iter(pages).map(Ok).boxed(),
            Some(Misbehaviour::Answer(status) | Misbehaviour::ApplyAndAnswer(status)) => {
                first.chain(stream::iter([Err(status)])).boxed()
            }
            Some(Misbehaviour::Hang | Misbehaviour::ApplyAndHang) => first.chain(stream::pending()).boxed(),
        }))
    }

    async fn get_routing(
        &self,
        _: Request<v1::GetRoutingRequest>,
    ) -> Result<Response<v1::GetRoutingResponse>, Status> {
        let shared = lock(&self.shared);
        match (&shared.layout, shared.state(self.own.node)) {
            (Some(layout), NodeState::Serving) => Ok(Response::new(routing(layout, &shared))),
            _ => Err(outcome(Code::FailedPrecondition, reason::NOT_INITIALIZED, 0, 0)),
        }
    }
}

/// How many operations of a session are served at a time.
const IN_FLIGHT_MAX: usize = 1024;

fn routing(layout: &Layout, shared: &Shared) -> v1::GetRoutingResponse {
    let index = |node| layout.members.iter().position(|member| member.node == node);
    let owners = |partition| v1::PartitionOwners {
        node: layout
            .rings()
            .flat_map(|ring| ring.replicas(partition))
            .filter_map(|replica| u32::try_from(index(replica.node)?).ok())
            .collect(),
    };
    v1::GetRoutingResponse {
        epoch: layout.epoch.0,
        partitions: layout.partitions.get().into(),
        nodes: layout
            .members
            .iter()
            .map(|member| v1::RoutingNode {
                node_id: Bytes::copy_from_slice(&member.node.0),
                name: member.name.clone(),
                client_address: shared.addresses.get(&member.node).cloned().unwrap_or_default(),
            })
            .collect(),
        owners: layout.partitions.all().map(owners).collect(),
    }
}
