//! The fake's KeyStore service.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use keystore_core::effect::Operation;
use keystore_core::layout::Layout;
use keystore_core::stamp::Stamp;
use keystore_proto::client::{Request as ClientRequest, reason};
use keystore_proto::v1;
use keystore_proto::v1::key_store_server::KeyStore;
use tonic::{Code, Request, Response, Status};

use super::{Misbehaviour, Own, Shared, SharedRef, lock, outcome};
use crate::status::NodeState;

pub(super) struct FakeKeyStore {
    pub own: Arc<Own>,
    pub shared: SharedRef,
}

impl FakeKeyStore {
    /// Serves a request, or does what the script says.
    async fn serve<T>(
        &self,
        request: Result<ClientRequest, impl std::fmt::Display>,
        answer: impl FnOnce(&Mutex<Shared>, Operation) -> T,
    ) -> Result<Response<T>, Status> {
        *lock(&self.own.requests) += 1;
        let script = lock(&self.own.script).pop_front();
        if lock(&self.shared).state(self.own.node) != NodeState::Serving {
            return Err(outcome(Code::FailedPrecondition, reason::NOT_INITIALIZED, 0, 0));
        }
        let operation = request.map_err(|problem| Status::invalid_argument(problem.to_string()))?.operation;
        if operation.key().keyspace() != "default" {
            return Err(outcome(Code::NotFound, reason::KEYSPACE_UNKNOWN, 0, 0));
        }
        match script {
            None => Ok(Response::new(answer(&self.shared, operation))),
            Some(Misbehaviour::Answer(status)) => Err(status),
            Some(Misbehaviour::ApplyAndAnswer(status)) => {
                answer(&self.shared, operation);
                Err(status)
            }
            Some(Misbehaviour::Hang) => std::future::pending().await,
            Some(Misbehaviour::ApplyAndHang) => {
                answer(&self.shared, operation);
                std::future::pending().await
            }
        }
    }

    fn write(&self, shared: &Mutex<Shared>, operation: Operation) -> Bytes {
        let (key, value) = match operation {
            Operation::Put { key, value } => (key, Some(value)),
            Operation::Get { key } | Operation::Delete { key } => (key, None),
        };
        let mut shared = lock(shared);
        shared.last_stamp += 1;
        shared.writes_applied += 1;
        let stamp = Stamp::new(shared.last_stamp, 0, self.own.actor);
        shared.records.insert(key, (stamp, value));
        Bytes::copy_from_slice(&stamp.to_bytes())
    }
}

#[tonic::async_trait]
impl KeyStore for FakeKeyStore {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let read = |shared: &Mutex<Shared>, operation: Operation| {
            let shared = lock(shared);
            let value = match shared.records.get(operation.key()) {
                Some((stamp, Some(value))) => {
                    Some(v1::Value { value: value.clone(), stamp: Bytes::copy_from_slice(&stamp.to_bytes()) })
                }
                Some((_, None)) | None => None,
            };
            v1::GetResponse { values: value.into_iter().collect() }
        };
        self.serve(ClientRequest::try_from(request.into_inner()), read).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let write = |shared: &Mutex<Shared>, operation: Operation| v1::PutResponse {
            stamp: self.write(shared, operation),
            acks: 3,
            durability: v1::Durability::Synced.into(),
        };
        self.serve(ClientRequest::try_from(request.into_inner()), write).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let write = |shared: &Mutex<Shared>, operation: Operation| v1::DeleteResponse {
            stamp: self.write(shared, operation),
            acks: 3,
            durability: v1::Durability::Synced.into(),
        };
        self.serve(ClientRequest::try_from(request.into_inner()), write).await
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
                client_address: shared.addresses.get(&member.node).map_or(String::new(), ToString::to_string),
            })
            .collect(),
        owners: layout.partitions.all().map(owners).collect(),
    }
}
