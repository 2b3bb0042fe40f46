//! Storage nodes in memory, which keep the rules of init (each accepts the first layout it sees and refuses any other,
//! and serves once all members have accepted) and those of the layouts that follow: what may follow what, by the store's
//! own check, and that nodes take up a layout, and move data, in their own time. That passes with each look at a node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_trait::async_trait;
use keystore_client::{Detail, Error, Reason};
use keystore_operator_core::observed::{
    Actor, Epoch, HeldLayout, Incarnation, Layout, NodeAnswer, NodeId, NodeMode, Transfer,
};

use keystore_core::succession::{Step, check_step};

use crate::nodes::{NodeAddress, NodeClient, NodeError};

/// At how many looks data still moves.
const LOOKS_TO_MOVE: u32 = 4;

#[derive(Default)]
pub(super) struct FakeNodes(Mutex<State>);

#[derive(Default)]
struct State {
    /// By pod: the node's UUID and what it has accepted. A pod that is absent does not answer.
    nodes: BTreeMap<String, (NodeId, Option<Layout>)>,
    /// By pod: what it answers, whatever it holds.
    garbled: BTreeMap<String, NodeAnswer>,
    /// At this pod's address somebody else, who is empty, answers the next question, and nobody else any later one.
    stray: Option<(String, NodeId)>,
    /// How many questions each pod still answers, where that is not all.
    answers_left: BTreeMap<String, u32>,
    /// Pods whose next init fails before the node sees it.
    init_fails_at: Option<String>,
    init_refused_at: Option<String>,
    layouts_seen: Vec<Layout>,
    /// Once in force, a layout stays so, whatever becomes of a volume, until another follows.
    in_force: Option<Layout>,
    /// Every layout that was decided after the first, in order.
    decided: Vec<Layout>,
    /// Says why to every proposal.
    refusal: Option<String>,
    /// How often each node was looked at while data moved.
    looks: BTreeMap<(NodeId, Epoch), u32>,
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

    pub(super) fn stray_at(&self, pod: &str, uuid: u8) {
        self.0.lock().unwrap().stray = Some((pod.to_owned(), NodeId([uuid; 16])));
    }

    /// These answer in one look from now on, and in none after it.
    pub(super) fn silence_after_one_look(&self, pods: &[&str]) {
        self.0.lock().unwrap().answers_left = pods.iter().map(|pod| ((*pod).to_owned(), 1)).collect();
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

    /// Until `None`.
    pub(super) fn refuse_proposals(&self, why: Option<&str>) {
        self.0.lock().unwrap().refusal = why.map(str::to_owned);
    }

    /// Every layout that was decided after the first, in order.
    pub(super) fn layouts_decided(&self) -> Vec<Layout> {
        self.0.lock().unwrap().decided.clone()
    }

    /// Every layout that a node was given, in order.
    pub(super) fn layouts_seen(&self) -> Vec<Layout> {
        self.0.lock().unwrap().layouts_seen.clone()
    }
}

impl State {
    fn decided(&self, layout: &Layout) -> bool {
        self.in_force.as_ref().is_some_and(|decided| decided.epoch >= layout.epoch)
    }

    fn moves(&self, node: NodeId, layout: &Layout) -> bool {
        let looks = self.looks.get(&(node, layout.epoch)).copied().unwrap_or(0);
        layout.ring().owned(node) > 0 && looks < LOOKS_TO_MOVE
    }

    /// What is missing before a layout can follow, as far as these nodes care.
    fn find_obstacle(&self, now: &Layout, step: Step) -> Option<String> {
        let is_late = |(node, held): &(NodeId, Option<Layout>)| {
            now.member(*node).is_some() && held.as_ref().is_none_or(|held| held.epoch < now.epoch)
        };
        let moves = |(node, _): &(NodeId, Option<Layout>)| self.moves(*node, now);
        match step {
            Step::Same | Step::Abort => None,
            Step::Begin | Step::Finish if self.nodes.values().any(is_late) => {
                Some("a node has not acknowledged it".to_owned())
            }
            Step::Finish if self.nodes.values().any(moves) => Some("data has to be merged".to_owned()),
            Step::Begin | Step::Finish => None,
        }
    }

    /// Time passes: the node takes up what was decided, or finds that it is a member no longer.
    fn go_on(&mut self, pod: &str) {
        let Some(newest) = self.in_force.clone() else { return };
        let Some((node, held)) = self.nodes.get_mut(pod) else { return };
        let is_member = newest.member(*node).is_some_and(|member| !member.is_lost);
        let has_departed = held.is_some() || newest.is_lost(*node);
        if is_member {
            *held = Some(newest.clone());
            *self.looks.entry((*node, newest.epoch)).or_default() += 1;
        } else if has_departed {
            (*node, *held) = (NodeId([node.0[0] + 100; 16]), None);
        }
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
        let mut state = self.0.lock().unwrap();
        if let Some(left) = state.answers_left.get_mut(&address.pod) {
            *left = left.checked_sub(1).ok_or_else(|| silence(address))?;
        }
        if let Some(answer) = state.garbled.get(&address.pod) {
            return Ok(answer.clone());
        }
        let stray = state.stray.take_if(|(pod, _)| *pod == address.pod);
        let (node, held) = match stray {
            Some((_, node)) => (node, None),
            None => state.node(address)?.clone(),
        };
        let mode = match &held {
            None => NodeMode::Uninitialized,
            Some(layout) if state.decided(layout) => NodeMode::Serving,
            Some(_) => NodeMode::Accepted,
        };
        let joint = held.as_ref().filter(|layout| layout.is_joint());
        let waits_for = joint.and_then(|layout| state.find_obstacle(layout, Step::Finish));
        let transfer = Transfer { waits_for, ..Transfer::default() };
        let connected: BTreeSet<_> = state.nodes.values().map(|(node, _)| *node).collect();
        state.go_on(&address.pod);
        Ok(NodeAnswer {
            connected,
            transfer,
            is_in_doubt: false,
            disk: None,
            node,
            actor: Actor(u64::from(node.0[0])),
            version: "0.1.0".to_owned(),
            mode,
            cluster: held.as_ref().map(|layout| layout.cluster),
            incarnation: held.as_ref().map_or_else(Incarnation::default, |layout| layout.incarnation),
            epoch: held.as_ref().map_or(Epoch(0), |layout| layout.epoch),
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
    async fn propose(
        &self,
        address: &NodeAddress,
        expected: Epoch,
        layout: &Layout,
    ) -> Result<Layout, NodeError> {
        let mut state = self.0.lock().unwrap();
        let (_, held) = state.node(address)?;
        let refused = |message: String| {
            let detail =
                Detail { reason: "LAYOUT_REFUSED".to_owned().into(), message, acks: None, needed: None };
            let (pod, address) = (address.pod.clone(), address.ip.clone());
            NodeError::Call { pod, address, source: Error::Refused(detail) }
        };
        let now = state.in_force.clone().filter(|now| held.as_ref() == Some(now) && now.epoch == expected);
        let now = now.ok_or_else(|| refused("the epoch has moved on".to_owned()))?;
        let step = check_step(&now, layout).unwrap();
        if let Some(why) = state.refusal.clone().or_else(|| state.find_obstacle(&now, step)) {
            return Err(refused(why));
        }
        state.in_force = Some(layout.clone());
        state.decided.push(layout.clone());
        Ok(layout.clone())
    }
}
