//! All addresses that a client knows, each with one connection, whoever named it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::node::Node;

#[derive(Default)]
pub(crate) struct Pool {
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
}

impl Pool {
    pub(crate) fn node(&self, address: &str) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match nodes.get(address) {
            Some(node) => node.clone(),
            None => {
                let node = Node::new(address.to_owned());
                nodes.insert(address.to_owned(), node.clone());
                node
            }
        }
    }

    /// Forgets all other addresses. Requests under way on them end first.
    pub(crate) fn retain(&self, addresses: &BTreeSet<&str>) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|address, _| addresses.contains(address.as_str()));
    }
}
