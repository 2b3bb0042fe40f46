//! The service for administrators: status, init, layout. Answers in every state.

use std::sync::Arc;

use keystore_core::effect::{Answer, InitRefusal, ProposalError};
use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::{Layout, Member};
use keystore_core::node::{HintStatus, NodeState};
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::recovery::RecoveryRefusal;
use keystore_core::transfer::TransferStatus;
use keystore_proto::admin::node_state_to_wire;
use keystore_proto::client::reason;
use keystore_proto::history::history_to_wire;
use keystore_proto::v1;
use keystore_proto::v1::admin_server::Admin;
use tonic::{Code, Request, Response, Status};

use super::outcome::status;
use crate::about::{About, Gossiped, SelfAddresses};
use crate::storage::EngineKind;
use crate::view::View;

#[derive(Debug, Clone)]
pub struct AdminService {
    pub about: About,
}

impl AdminService {
    fn peer(&self, member: &Member, view: &View) -> v1::PeerStatus {
        let link = view.connected.iter().find(|(node, _)| *node == member.node);
        let gossiped = self.about.gossiped.borrow();
        let known = gossiped.get(&member.node);
        v1::PeerStatus {
            node_id: member.node.0.to_vec().into(),
            name: member.name.clone(),
            zone: member.zone.clone(),
            connected: link.is_some(),
            client_address: known.map(|known| known.client_address.clone()).unwrap_or_default(),
            peer_address: known
                .and_then(|known| known.peer_address)
                .map(|address| address.to_string())
                .unwrap_or_default(),
            alive: known.is_some_and(|known| known.alive),
            generation: link
                .map(|(_, generation)| *generation)
                .or_else(|| known.map(|known| known.generation))
                .map_or(0, |generation| generation.0),
            epoch: view.fences.get(&member.node).map_or(0, |epoch| epoch.0),
        }
    }

    fn disk(&self) -> v1::DiskStatus {
        let disk = *self.about.disk.borrow();
        v1::DiskStatus {
            total_bytes: disk.space.total,
            available_bytes: disk.space.available,
            full: disk.full,
            set_aside_bytes: disk.set_aside_bytes,
        }
    }

    fn status(&self, view: &View) -> v1::GetStatusResponse {
        let layout = view.layout.as_deref();
        let SelfAddresses { client, peer } = self.about.ours.borrow().clone();
        let others = layout.map_or(&[][..], |layout| &layout.members);
        let others = others.iter().filter(|member| member.node != self.about.node);
        v1::GetStatusResponse {
            node_id: self.about.node.0.to_vec().into(),
            actor: self.about.actor.0,
            name: self.about.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: node_state_to_wire(view.state).into(),
            cluster_id: layout.map(|layout| layout.cluster.0.to_vec().into()).unwrap_or_default(),
            incarnation: layout.map(|layout| layout.incarnation.into()),
            epoch: layout.map_or(0, |layout| layout.epoch.0),
            generation: view.generation.max(self.about.generation).0,
            partitions_owned: saturated(view.partitions_owned),
            peers: others.map(|member| self.peer(member, view)).collect(),
            disk: Some(self.disk()),
            partitions_available: saturated(view.partitions_available),
            client_address: client,
            peer_address: peer,
            engine: EngineKind::from(self.about.config.storage.engine).name().to_owned(),
            clock: view.latest_stamp.to_bytes().to_vec().into(),
            doubted_keys: saturated(view.doubted_keys),
            doubted: view.doubted.iter().map(doubted_key).collect(),
            hints: Some(hint_status(&view.hints)),
            transfer: Some(transfer_status(view)),
            doubted_partitions: view.doubted_wholly.iter().map(doubted_partition).collect(),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(self.status(&self.about.core.view())))
    }

    async fn init(&self, request: Request<v1::InitRequest>) -> Result<Response<v1::InitResponse>, Status> {
        let invalid = |message: String| status(Code::InvalidArgument, reason::INVALID_ARGUMENT, message);
        let layout =
            request.into_inner().layout.ok_or_else(|| invalid("the layout is missing".to_owned()))?;
        let layout = Layout::try_from(layout).map_err(|error| invalid(error.to_string()))?;
        let is_new = self.about.core.view().state == NodeState::Uninitialized;
        if is_new && let Some(other) = stranger(&layout, &self.about.gossiped.borrow()) {
            let message = format!(
                "{other} belongs to a store and is in one gossip cluster with this node, but no member"
            );
            return Err(status(Code::FailedPrecondition, reason::WRONG_CLUSTER, message));
        }
        match self.about.core.init(layout).await {
            Ok(Answer::InitAccepted) => Ok(Response::new(v1::InitResponse {
                state: match self.about.core.view().state {
                    // Accepted just now, and not shown yet.
                    NodeState::Uninitialized => v1::NodeState::Accepted.into(),
                    state => node_state_to_wire(state).into(),
                },
            })),
            Ok(Answer::InitRefused(refusal)) => Err(match refusal {
                InitRefusal::OtherCluster(_) => {
                    status(Code::FailedPrecondition, reason::WRONG_CLUSTER, refusal.to_string())
                }
                InitRefusal::NoMember(_) | InitRefusal::NotFirst(_) | InitRefusal::Invalid(_) => {
                    invalid(refusal.to_string())
                }
            }),
            Ok(other) => {
                tracing::error!(?other, "an answer of the wrong kind");
                Err(Status::new(Code::Unknown, "an answer of the wrong kind"))
            }
            Err(stopped) => Err(status(Code::Unknown, reason::OUTCOME_UNKNOWN, stopped.to_string())),
        }
    }

    async fn propose_layout(
        &self,
        request: Request<v1::ProposeLayoutRequest>,
    ) -> Result<Response<v1::ProposeLayoutResponse>, Status> {
        let invalid = |message: String| status(Code::InvalidArgument, reason::INVALID_ARGUMENT, message);
        let v1::ProposeLayoutRequest { expected_epoch, layout } = request.into_inner();
        let layout = layout.ok_or_else(|| invalid("the layout is missing".to_owned()))?;
        let layout = Layout::try_from(layout).map_err(|error| invalid(error.to_string()))?;
        match self.about.core.propose(Epoch(expected_epoch), layout).await {
            Ok(Answer::Decided(layout)) => {
                Ok(Response::new(v1::ProposeLayoutResponse { layout: Some((&*layout).into()) }))
            }
            Ok(Answer::ProposalFailed(error)) => {
                let (code, why) = match &error {
                    ProposalError::NotInitialized => (Code::FailedPrecondition, reason::NOT_INITIALIZED),
                    ProposalError::Epoch { .. } => (Code::FailedPrecondition, reason::STALE_EPOCH),
                    ProposalError::Busy => (Code::Unavailable, reason::OVERLOADED),
                    ProposalError::Refused(_)
                    | ProposalError::Unacknowledged { .. }
                    | ProposalError::StillDrops { .. }
                    | ProposalError::StillNeeded { .. }
                    | ProposalError::Voted(_) => (Code::FailedPrecondition, reason::LAYOUT_REFUSED),
                    ProposalError::Unknown => (Code::Unknown, reason::OUTCOME_UNKNOWN),
                };
                Err(status(code, why, error.to_string()))
            }
            Ok(other) => {
                tracing::error!(?other, "an answer of the wrong kind");
                Err(Status::new(Code::Unknown, "an answer of the wrong kind"))
            }
            Err(stopped) => Err(status(Code::Unknown, reason::OUTCOME_UNKNOWN, stopped.to_string())),
        }
    }

    async fn recover(
        &self,
        request: Request<v1::RecoverRequest>,
    ) -> Result<Response<v1::RecoverResponse>, Status> {
        let invalid = |message: String| status(Code::InvalidArgument, reason::INVALID_ARGUMENT, message);
        let layout = request.into_inner().layout;
        let layout = layout.ok_or_else(|| invalid("the layout is missing".to_owned()))?;
        let layout = Layout::try_from(layout).map_err(|error| invalid(error.to_string()))?;
        match self.about.core.recover(layout).await {
            Ok(Answer::RecoveryAccepted) => {
                let state = node_state_to_wire(self.about.core.view().state).into();
                Ok(Response::new(v1::RecoverResponse { state }))
            }
            Ok(Answer::RecoveryRefused(refusal)) => {
                let (code, why) = match &refusal {
                    RecoveryRefusal::NotInitialized => (Code::FailedPrecondition, reason::NOT_INITIALIZED),
                    RecoveryRefusal::OtherCluster(_) => (Code::FailedPrecondition, reason::WRONG_CLUSTER),
                    RecoveryRefusal::Incarnation { .. }
                    | RecoveryRefusal::Epoch { .. }
                    | RecoveryRefusal::Overtaken(_) => (Code::FailedPrecondition, reason::STALE_EPOCH),
                    RecoveryRefusal::Busy => (Code::Unavailable, reason::OVERLOADED),
                    RecoveryRefusal::NoSurvivor(_) => return Err(invalid(refusal.to_string())),
                };
                Err(status(code, why, refusal.to_string()))
            }
            Ok(other) => {
                tracing::error!(?other, "an answer of the wrong kind");
                Err(Status::new(Code::Unknown, "an answer of the wrong kind"))
            }
            Err(stopped) => Err(status(Code::Unknown, reason::OUTCOME_UNKNOWN, stopped.to_string())),
        }
    }

    async fn get_layout(
        &self,
        _request: Request<v1::GetLayoutRequest>,
    ) -> Result<Response<v1::GetLayoutResponse>, Status> {
        let view = self.about.core.view();
        Ok(Response::new(v1::GetLayoutResponse {
            layout: view.layout.as_deref().map(Into::into),
            decided: matches!(view.state, NodeState::Serving | NodeState::Draining),
            doubted_partitions: view.doubted_partitions.iter().map(|partition| partition.0.into()).collect(),
        }))
    }

    async fn get_layout_history(
        &self,
        _request: Request<v1::GetLayoutHistoryRequest>,
    ) -> Result<Response<v1::GetLayoutHistoryResponse>, Status> {
        let history = Arc::clone(&self.about.history.borrow());
        Ok(Response::new(v1::GetLayoutHistoryResponse { history: Some(history_to_wire(&history)) }))
    }
}

/// A running node of this gossip cluster that belongs to a store, and not to that of this layout: this node is to
/// come back to that store, or has been given the wrong gossip cluster.
fn stranger(layout: &Layout, gossiped: &Gossiped) -> Option<NodeId> {
    let mut others = gossiped.iter().filter(|(_, known)| known.alive && known.epoch.is_some());
    others.find(|(node, _)| layout.member(**node).is_none()).map(|(node, _)| *node)
}

fn hint_status(hints: &HintStatus) -> v1::HintStatus {
    let HintStatus { pending, bytes, targets, partitions_wanted_by_repair } = hints;
    let target = |(node, (pending, bytes)): (&NodeId, &(usize, usize))| v1::HintTarget {
        node_id: node.0.to_vec().into(),
        pending: *pending as u64,
        bytes: *bytes as u64,
    };
    v1::HintStatus {
        pending: *pending as u64,
        bytes: *bytes as u64,
        targets: targets.iter().map(target).collect(),
        partitions_wanted_by_repair: saturated(*partitions_wanted_by_repair),
    }
}

fn transfer_status(view: &View) -> v1::TransferStatus {
    let TransferStatus { partitions, done, records, bytes, records_held, remaining_ms } = view.transfer;
    v1::TransferStatus {
        partitions: saturated(partitions),
        partitions_done: saturated(done),
        records,
        bytes,
        waits_for: view.move_waits_for.clone().unwrap_or_default(),
        records_held,
        remaining_ms,
    }
}

fn doubted_partition((partition, doubted_ms): &(Partition, u64)) -> v1::DoubtedPartition {
    v1::DoubtedPartition { partition: partition.0.into(), doubted_ms: *doubted_ms }
}

fn doubted_key((key, doubted_ms): &(RecordKey, u64)) -> v1::DoubtedKey {
    v1::DoubtedKey { keyspace: key.keyspace().to_owned(), key: key.user_key(), doubted_ms: *doubted_ms }
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use keystore_core::id::Generation;

    use super::*;
    use crate::about::Known;
    use crate::view::layout_of;

    const ME: NodeId = NodeId([1; 16]);
    const OTHER: NodeId = NodeId([2; 16]);

    #[test]
    fn a_node_whose_company_belongs_to_a_store_is_not_made_one_without_it() {
        let known = |alive, has_layout: bool| {
            let known = Known {
                generation: Generation(1),
                peer_address: None,
                client_address: String::new(),
                alive,
                epoch: has_layout.then_some(Epoch(1)),
            };
            Gossiped::from([(OTHER, known)])
        };
        assert_eq!(stranger(&layout_of(&[ME]), &known(true, true)), Some(OTHER));
        for (members, gossiped, why) in [
            (&[ME, OTHER][..], known(true, true), "an init that is finished by a repetition"),
            (&[ME], known(true, false), "it belongs to none either"),
            (&[ME], known(false, true), "it has ended, its address may be somebody else's by now"),
            (&[ME], Gossiped::new(), "nobody else is there"),
        ] {
            assert_eq!(stranger(&layout_of(members), &gossiped), None, "{why}");
        }
    }
}
