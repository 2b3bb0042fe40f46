//! What every service may ask: who this node is, and what it knows of itself and of the others.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
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
    /// Clients are told the configured name, if there is one, even while the node's own address is unknown. Other nodes dial an
    /// address, not a name: a name may still lead to where this node was before.
    pub fn of(config: &Config, ip: Option<IpAddr>) -> Self {
        let Listen { client, peer, .. } = config.listen;
        let host = config.node.advertise_host.clone().or_else(|| ip.map(|ip| ip.to_string()));
        let client = match host {
            Some(host) => format!("{}:{}", bracketed(&host), client.port()),
            None => client.to_string(),
        };
        let peer = ip.map_or(peer, |ip| SocketAddr::new(ip, peer.port()));
        Self { client, peer: peer.to_string() }
    }
}

/// An IPv6 address needs brackets before a port.
fn bracketed(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_the_configured_name_before_an_address_is_found() {
        let mut config = Config::default();
        let told = |config: &Config, ip: Option<&str>| {
            let SelfAddresses { client, peer } = SelfAddresses::of(config, ip.map(|ip| ip.parse().unwrap()));
            [client, peer]
        };
        assert_eq!(told(&config, None), ["0.0.0.0:7400", "0.0.0.0:7401"]);
        assert_eq!(told(&config, Some("2001:db8::7")), ["[2001:db8::7]:7400", "[2001:db8::7]:7401"]);
        config.node.advertise_host = Some("node.example".to_owned());
        assert_eq!(told(&config, None), ["node.example:7400", "0.0.0.0:7401"]);
        assert_eq!(told(&config, Some("192.0.2.7")), ["node.example:7400", "192.0.2.7:7401"]);
    }
}
