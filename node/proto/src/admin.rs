//! What nodes tell administrators, beside the layout: where they stand in their lives.

use keystore_core::node::NodeState;

use crate::v1;

pub fn node_state_to_wire(state: NodeState) -> v1::NodeState {
    match state {
        NodeState::Uninitialized => v1::NodeState::Uninitialized,
        NodeState::Accepted => v1::NodeState::Accepted,
        NodeState::Serving => v1::NodeState::Serving,
        NodeState::Draining => v1::NodeState::Draining,
    }
}

/// `None` for a state that this version does not know.
pub fn node_state_from_wire(state: v1::NodeState) -> Option<NodeState> {
    match state {
        v1::NodeState::Unspecified => None,
        v1::NodeState::Uninitialized => Some(NodeState::Uninitialized),
        v1::NodeState::Accepted => Some(NodeState::Accepted),
        v1::NodeState::Serving => Some(NodeState::Serving),
        v1::NodeState::Draining => Some(NodeState::Draining),
    }
}

/// In one word, for people and logs.
pub fn node_state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Uninitialized => "uninitialized",
        NodeState::Accepted => "accepted",
        NodeState::Serving => "serving",
        NodeState::Draining => "draining",
    }
}
