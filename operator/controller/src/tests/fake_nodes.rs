//! Storage nodes in memory, which keep the rules of init: each accepts the first layout it sees and refuses any
//! other, and serves once all members have accepted.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use keystore_client::{Detail, Error, Reason};
use keystore_operator_core::observed::{Actor, HeldLayout, Layout, NodeAnswer, NodeId, NodeMode};

use crate::nodes::{NodeAddress, NodeClient, NodeError};

#[derive(Default)]
pub(super) struct FakeNodes(Mutex<State>);

#[derive(Default)]
struct State {
    /// By pod: the node's UUID and what it has accepted. A pod that is absent does not answer.
    nodes: BTreeMap<String, (NodeId, Option<Layout>)>,
    /// By pod: what it answers, whatever it holds.
    garbled: BTreeMap<String, NodeAnswer>,
    /// Pods whose next init fails before the node sees it.
    init_fails_at: Option<String>,
    init_refused_at: Option<String>,
    layouts_seen: Vec<Layout>,
    /// Once in force, a layout stays so, whatever becomes of a volume.
    in_force: Option<Layout>,
}

impl FakeNodes {
    pub(super) fn start(&self, pod: &str, uuid: u8) {
        self.0.lock().unwrap().nodes.insert(pod.to_owned(), (NodeId([uuid; 16]), None));
    }

    /// The pod stops answering; what it holds is returned.
    pub(super) fn stop(&self, pod: &str) -> Option<(NodeId, Option<Layout>)> {
        self.0.lock().unwrap().nodes.remove(pod)
    }

    pub(super) fn resume(&self, pod: &str, node: (NodeId, Option<Layout>)) {
        self.0.lock().unwrap().nodes.insert(pod.to_owned(), node);
    }

    pub(super) fn fail_next_init_at(&self, pod: &str) {
        self.0.lock().unwrap().init_fails_at = Some(pod.to_owned());
    }

    /// Until `None`.
    pub(super) fn refuse_init_at(&self, pod: Option<&str>) {
        self.0.lock().unwrap().init_refused_at = pod.map(str::to_owned);
    }

    /// From now on, until it is called with `None`.
    pub(super) fn garble(&self, pod: &str, answer: Option<NodeAnswer>) {
        let garbled = &mut self.0.lock().unwrap().garbled;
        match answer {
            Some(answer) => drop(garbled.insert(pod.to_owned(), answer)),
            None => drop(garbled.remove(pod)),
        }
    }

    /// Every layout that a node was given, in order.
    pub(super) fn layouts_seen(&self) -> Vec<Layout> {
        self.0.lock().unwrap().layouts_seen.clone()
    }
}

impl State {
    fn decided(&self, layout: &Layout) -> bool {
        self.in_force.as_ref() == Some(layout)
    }

    fn all_accepted(&self, layout: &Layout) -> bool {
        let holds =
            |name: &String| self.nodes.get(name).is_some_and(|(_, held)| held.as_ref() == Some(layout));
        layout.members.iter().all(|member| holds(&member.name))
    }

    fn node(&self, address: &NodeAddress) -> Result<&(NodeId, Option<Layout>), NodeError> {
        self.nodes.get(&address.pod).ok_or_else(|| silence(address))
    }
}

fn silence(address: &NodeAddress) -> NodeError {
    NodeError::Stranger { asked: address.pod.clone(), answered: "nobody".to_owned() }
}

#[async_trait]
impl NodeClient for FakeNodes {
    async fn get_status(&self, address: &NodeAddress) -> Result<NodeAnswer, NodeError> {
        let state = self.0.lock().unwrap();
        if let Some(answer) = state.garbled.get(&address.pod) {
            return Ok(answer.clone());
        }
        let (node, held) = state.node(address)?;
        let mode = match held {
            None => NodeMode::Uninitialized,
            Some(layout) if state.decided(layout) => NodeMode::Serving,
            Some(_) => NodeMode::Accepted,
        };
        Ok(NodeAnswer {
            node: *node,
            actor: Actor(u64::from(node.0[0])),
            version: "0.1.0".to_owned(),
            mode,
            cluster: held.as_ref().map(|layout| layout.cluster),
            epoch: u64::from(mode == NodeMode::Serving),
            partitions_available: if mode == NodeMode::Serving { 256 } else { 0 },
        })
    }

    async fn get_layout(&self, address: &NodeAddress) -> Result<Option<HeldLayout>, NodeError> {
        let state = self.0.lock().unwrap();
        let (_, held) = state.node(address)?;
        Ok(held.clone().map(|layout| HeldLayout { decided: state.decided(&layout), layout }))
    }

    async fn init(&self, address: &NodeAddress, layout: &Layout) -> Result<(), NodeError> {
        let mut state = self.0.lock().unwrap();
        if state.init_fails_at.take_if(|pod| *pod == address.pod).is_some() {
            return Err(silence(address));
        }
        if state.init_refused_at.as_deref() == Some(&address.pod) {
            let message = "its company belongs to a store".to_owned();
            let detail = Detail { reason: Reason::WRONG_CLUSTER, message, acks: None, needed: None };
            let (pod, address) = (address.pod.clone(), address.ip.clone());
            return Err(NodeError::Call { pod, address, source: Error::Refused(detail) });
        }
        state.layouts_seen.push(layout.clone());
        let (_, held) = state.nodes.get_mut(&address.pod).ok_or_else(|| silence(address))?;
        assert!(held.is_none() || held.as_ref() == Some(layout), "{} is given another layout", address.pod);
        *held = Some(layout.clone());
        if state.all_accepted(layout) {
            state.in_force = Some(layout.clone());
        }
        Ok(())
    }
}
