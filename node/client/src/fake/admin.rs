//! The fake's Admin service.

use std::sync::Arc;

use bytes::Bytes;
use keystore_core::layout::Layout;
use keystore_core::succession::check_step;
use keystore_proto::admin::node_state_to_wire;
use keystore_proto::client::reason;
use keystore_proto::v1;
use keystore_proto::v1::admin_server::Admin;
use tonic::{Code, Request, Response, Status};

use super::{Own, Shared, SharedRef, lock, outcome};
use crate::NodeState;

pub(super) struct FakeAdmin {
    pub own: Arc<Own>,
    pub shared: SharedRef,
}

pub(super) fn status(own: &Own, shared: &Shared) -> v1::GetStatusResponse {
    let state = shared.state(own.node);
    let layout = shared.layout.as_ref().filter(|_| state != NodeState::Uninitialized);
    let partitions = layout.map_or(0, |layout| u32::from(layout.partitions.get()));
    let peers = layout.map(|layout| {
        let others = layout.members.iter().filter(|member| member.node != own.node);
        let peer = others.map(|member| v1::PeerStatus {
            node_id: Bytes::copy_from_slice(&member.node.0),
            name: member.name.clone(),
            zone: member.zone.clone(),
            connected: true,
            alive: true,
            generation: 1,
            ..Default::default()
        });
        peer.collect()
    });
    v1::GetStatusResponse {
        node_id: Bytes::copy_from_slice(&own.node.0),
        actor: own.actor.0,
        name: own.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: node_state_to_wire(state).into(),
        cluster_id: layout.map_or(Bytes::new(), |layout| Bytes::copy_from_slice(&layout.cluster.0)),
        incarnation: layout.map(|layout| layout.incarnation.into()),
        epoch: layout.map_or(0, |layout| layout.epoch.0),
        generation: 1,
        partitions_owned: partitions,
        peers: peers.unwrap_or_default(),
        partitions_available: partitions,
        client_address: own.client_address.to_string(),
        peer_address: own.admin_address.to_string(),
        engine: "fake".to_owned(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Admin for FakeAdmin {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(status(&self.own, &lock(&self.shared))))
    }

    async fn init(&self, request: Request<v1::InitRequest>) -> Result<Response<v1::InitResponse>, Status> {
        let layout = request.into_inner().layout.ok_or_else(|| Status::invalid_argument("no layout"))?;
        let layout = Layout::try_from(layout).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut shared = lock(&self.shared);
        match &shared.layout {
            Some(accepted) if *accepted != layout => {
                return Err(outcome(Code::FailedPrecondition, reason::WRONG_CLUSTER, 0, 0));
            }
            Some(_) => {}
            None => shared.layout = Some(layout),
        }
        shared.accepted.insert(self.own.node, true);
        Ok(Response::new(v1::InitResponse { state: node_state_to_wire(shared.state(self.own.node)).into() }))
    }

    async fn propose_layout(
        &self,
        request: Request<v1::ProposeLayoutRequest>,
    ) -> Result<Response<v1::ProposeLayoutResponse>, Status> {
        let v1::ProposeLayoutRequest { expected_epoch, layout } = request.into_inner();
        let mut shared = lock(&self.shared);
        let now = shared.layout.clone().filter(|now| now.epoch.0 == expected_epoch);
        let next = layout.and_then(|layout| Layout::try_from(layout).ok());
        let (Some(now), Some(next)) = (now, next) else {
            return Err(outcome(Code::FailedPrecondition, reason::STALE_EPOCH, 0, 0));
        };
        if let Err(error) = check_step(&now, &next) {
            return Err(Status::failed_precondition(error.to_string()));
        }
        shared.layout = Some(next.clone());
        Ok(Response::new(v1::ProposeLayoutResponse { layout: Some((&next).into()) }))
    }

    async fn get_layout(
        &self,
        _: Request<v1::GetLayoutRequest>,
    ) -> Result<Response<v1::GetLayoutResponse>, Status> {
        let shared = lock(&self.shared);
        let state = shared.state(self.own.node);
        let layout = shared.layout.as_ref().filter(|_| state != NodeState::Uninitialized);
        Ok(Response::new(v1::GetLayoutResponse {
            layout: layout.map(v1::Layout::from),
            decided: state == NodeState::Serving,
        }))
    }
}
