//! What every service may ask: who this node is, and what it knows of itself and of the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use keystore_core::history::History;
use keystore_core::id::{Actor, Epoch, Generation, NodeId};
use tokio::sync::watch;

use crate::config::{Config, Listen};
use crate::disk::DiskUse;
use crate::handle::CoreHandle;

/// What gossip knows of the other nodes.
pub type Gossiped = BTreeMap<NodeId, Known>;

/// What another node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub generation: Generation,
    pub peer_address: Option<SocketAddr>,
    /// host:port for clients; empty where none is known.
    pub client_address: String,
    pub alive: bool,
    /// Of the layout that it has accepted, if it has one.
    pub epoch: Option<Epoch>,
}

/// Under which addresses this node tells others to reach it, host:port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfAddresses {
    pub client: String,
    pub peer: String,
}

impl SelfAddresses {
    /// Before the node's own address is known.
    pub fn of_listeners(listen: &Listen) -> Self {
        Self { client: listen.client.to_string(), peer: listen.peer.to_string() }
    }
}

/// Cheap to clone; all clones see the same.
#[derive(Debug, Clone)]
pub struct About {
    pub config: Arc<Config>,
    pub node: NodeId,
    pub actor: Actor,
    pub generation: Generation,
    pub core: CoreHandle,
    pub gossiped: watch::Receiver<Arc<Gossiped>>,
    pub ours: watch::Receiver<SelfAddresses>,
    pub disk: watch::Receiver<DiskUse>,
    /// The layouts that this node has taken up.
    pub history: watch::Receiver<Arc<History>>,
}

impl About {
    /// host:port of a member's service for clients; empty while it is unknown.
    pub fn client_address(&self, node: NodeId) -> String {
        if node == self.node {
            return self.ours.borrow().client.clone();
        }
        let gossiped = self.gossiped.borrow();
        gossiped.get(&node).map(|known| known.client_address.clone()).unwrap_or_default()
    }
}
