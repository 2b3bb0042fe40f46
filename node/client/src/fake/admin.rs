//! The fake's Admin service.

use std::sync::Arc;

use bytes::Bytes;
use keystore_core::id::Epoch;
use keystore_core::layout::Layout;
use keystore_proto::admin::node_state_to_wire;
use keystore_proto::client::reason;
use keystore_proto::history::history_to_wire;
use keystore_proto::v1;
use keystore_proto::v1::admin_server::Admin;
use tonic::{Code, Request, Response, Status};

use super::{Own, Shared, SharedRef, layouts, lock, outcome};
use crate::NodeState;

pub(super) struct FakeAdmin {
    pub own: Arc<Own>,
    pub shared: SharedRef,
}

/// What a node has on its disk: 1 MiB for each of 16 partitions.
const DISK: v1::DiskStatus = v1::DiskStatus {
    total_bytes: 1 << 30,
    available_bytes: (1 << 30) - (16 << 20),
    full: false,
    set_aside_bytes: 0,
};

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
            connected: shared.layouts.are_connected(own.node, member.node),
            alive: true,
            generation: 1,
            epoch: shared.layouts.fence(layout, member.node).0,
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
        epoch: layout.map_or(0, |layout| shared.layouts.fence(layout, own.node).0),
        generation: 1,
        partitions_owned: layout.map_or(0, |layout| layout.owned(own.node) as u32),
        peers: peers.unwrap_or_default(),
        partitions_available: partitions,
        client_address: own.client_address.to_string(),
        peer_address: own.admin_address.to_string(),
        engine: "fake".to_owned(),
        disk: Some(DISK),
        transfer: layout.map(|layout| shared.layouts.transfer(layout, own.node)),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Admin for FakeAdmin {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let shared = &mut *lock(&self.shared);
        if let Some(layout) = &shared.layout {
            shared.layouts.go_on(layout, self.own.node);
        }
        Ok(Response::new(status(&self.own, shared)))
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
            None => shared.take_up(layout),
        }
        shared.accepted.insert(self.own.node, true);
        Ok(Response::new(v1::InitResponse { state: node_state_to_wire(shared.state(self.own.node)).into() }))
    }

    async fn propose_layout(
        &self,
        request: Request<v1::ProposeLayoutRequest>,
    ) -> Result<Response<v1::ProposeLayoutResponse>, Status> {
        let v1::ProposeLayoutRequest { expected_epoch, layout } = request.into_inner();
        let layout = layout.ok_or_else(|| Status::invalid_argument("no layout"))?;
        let layout = Layout::try_from(layout).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let decided = layouts::propose(&mut lock(&self.shared), Epoch(expected_epoch), layout)?;
        Ok(Response::new(v1::ProposeLayoutResponse { layout: Some((&decided).into()) }))
    }

    async fn recover(
        &self,
        request: Request<v1::RecoverRequest>,
    ) -> Result<Response<v1::RecoverResponse>, Status> {
        let layout = request.into_inner().layout.ok_or_else(|| Status::invalid_argument("no layout"))?;
        let layout = Layout::try_from(layout).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut shared = lock(&self.shared);
        if shared.layout.as_ref() != Some(&layout) {
            shared.take_up(layout);
            shared.accepted.clear();
        }
        shared.accepted.insert(self.own.node, true);
        let state = node_state_to_wire(shared.state(self.own.node)).into();
        Ok(Response::new(v1::RecoverResponse { state }))
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
            doubted_partitions: lock(&self.own.doubted).clone(),
        }))
    }

    async fn get_layout_history(
        &self,
        _: Request<v1::GetLayoutHistoryRequest>,
    ) -> Result<Response<v1::GetLayoutHistoryResponse>, Status> {
        let history = history_to_wire(&lock(&self.shared).history);
        Ok(Response::new(v1::GetLayoutHistoryResponse { history: Some(history) }))
    }
}
