//! Which node is where: the layout's members beside the pods and beside what answers in them.
//!
//! A member is found by its UUID; its name only says in which pod it is to be looked for, and where a node was replaced
//! two members have one name. Silence says nothing of a member. That another node, which belongs to no store, answers in
//! its pod says that its volume is gone.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::NodeId;
use keystore_core::layout::{Layout, Member};
use keystore_core::quorum::Consistency;
use keystore_core::ring::Ring;
use keystore_core::succession::others_of_a_quorum;

use crate::names::Names;
use crate::observed::{Answer, NodeAnswer, NodeMode, Observed};

pub(crate) struct Roster<'a> {
    pub(crate) names: &'a Names,
    pub(crate) layout: &'a Layout,
    pub(crate) observed: &'a Observed,
    /// By UUID: in which pod it answers, and what.
    heard: BTreeMap<NodeId, (u32, &'a NodeAnswer)>,
}

impl<'a> Roster<'a> {
    pub(crate) fn new(names: &'a Names, layout: &'a Layout, observed: &'a Observed) -> Self {
        let heard = observed.heard().map(|(ordinal, answer)| (answer.node, (ordinal, answer))).collect();
        Self { names, layout, observed, heard }
    }

    pub(crate) fn ordinal(&self, node: NodeId) -> Option<u32> {
        self.names.ordinal(&self.layout.member(node)?.name)
    }

    pub(crate) fn ordinals(&self, nodes: impl IntoIterator<Item = NodeId>) -> BTreeSet<u32> {
        nodes.into_iter().filter_map(|node| self.ordinal(node)).collect()
    }

    /// `demo-1, demo-3`
    pub(crate) fn pods(&self, ordinals: impl IntoIterator<Item = u32>) -> String {
        let pods: Vec<_> = ordinals.into_iter().map(|ordinal| self.names.pod(ordinal)).collect();
        pods.join(", ")
    }

    /// What a member answers, in whichever pod.
    pub(crate) fn answer_of(&self, node: NodeId) -> Option<&'a NodeAnswer> {
        self.heard.get(&node).map(|(_, answer)| *answer)
    }

    /// What a member answers in the pod that the layout names for it.
    pub(crate) fn answer_at_home(&self, node: NodeId) -> Option<&'a NodeAnswer> {
        let (ordinal, answer) = self.heard.get(&node)?;
        (self.ordinal(node) == Some(*ordinal)).then_some(*answer)
    }

    /// True if some node answers in this pod.
    pub(crate) fn answers(&self, ordinal: u32) -> bool {
        self.observed.answers.get(&ordinal).and_then(Answer::here).is_some()
    }

    /// True if some node that answers has a link to this one.
    pub(crate) fn is_linked(&self, node: NodeId) -> bool {
        self.heard.values().any(|(_, answer)| answer.connected.contains(&node))
    }

    /// The members that do not say, where they belong, that they serve.
    pub(crate) fn silent(&self) -> BTreeSet<NodeId> {
        let serves =
            |node: NodeId| self.answer_at_home(node).is_some_and(|answer| answer.mode == NodeMode::Serving);
        let members = self.layout.members.iter().filter(|member| !member.is_lost);
        members.map(|member| member.node).filter(|node| !serves(*node)).collect()
    }

    /// The members that say of themselves that something they hold is damaged.
    pub(crate) fn in_doubt(&self) -> BTreeSet<NodeId> {
        let doubts = |node: NodeId| self.answer_of(node).is_some_and(|answer| answer.is_in_doubt);
        self.layout.members.iter().map(|member| member.node).filter(|node| doubts(*node)).collect()
    }

    /// The partitions of which no quorum of replicas says that it has lost nothing.
    pub(crate) fn untrusted(&self) -> usize {
        let doubting = self.in_doubt();
        let is_trusted = |node: NodeId| !self.layout.is_lost(node) && !doubting.contains(&node);
        let rings = self.layout.ring().iter();
        let lacks_quorum = rings.filter(|(_, replicas)| {
            let trusted = replicas.iter().filter(|replica| is_trusted(replica.node)).count();
            trusted < Consistency::Quorum.needed(replicas.len())
        });
        lacks_quorum.count()
    }

    /// The member of this pod that counts: not lost; where somebody made several, the one that answers, then the one
    /// that holds most.
    pub(crate) fn live(&self, ordinal: u32) -> Option<&'a Member> {
        let pod = self.names.pod(ordinal);
        let named = self.layout.members.iter().filter(|member| member.name == pod && !member.is_lost);
        named.max_by_key(|member| {
            (self.answer_at_home(member.node).is_some(), self.layout.owned(member.node), member.node)
        })
    }

    /// True if some member, lost or not, belongs into this pod.
    pub(crate) fn is_named(&self, ordinal: u32) -> bool {
        let pod = self.names.pod(ordinal);
        self.layout.members.iter().any(|member| member.name == pod)
    }

    /// The node that answers in this pod and may be made a member: it belongs to no store and never belonged to this.
    pub(crate) fn stranger(&self, ordinal: u32) -> Option<&'a NodeAnswer> {
        let answer = self.observed.answers.get(&ordinal).and_then(Answer::here)?;
        let is_empty = answer.mode == NodeMode::Uninitialized && answer.cluster.is_none();
        let is_known =
            self.layout.member(answer.node).is_some() || self.layout.departed.contains(&answer.node);
        (is_empty && !is_known).then_some(answer)
    }

    /// True if a member answers in its pod, or one that may become a member.
    pub(crate) fn is_heard(&self, ordinal: u32) -> bool {
        let answers = |member: &Member| self.answer_at_home(member.node).is_some();
        self.stranger(ordinal).is_some() || self.live(ordinal).is_some_and(answers)
    }

    /// The members whose volume is certainly gone: another, empty node answers in their pod, and they answer nowhere.
    pub(crate) fn replaced(&self) -> BTreeSet<NodeId> {
        let is_replaced = |member: &&Member| {
            let ordinal = self.names.ordinal(&member.name);
            !member.is_lost
                && !self.heard.contains_key(&member.node)
                && ordinal.is_some_and(|ordinal| self.stranger(ordinal).is_some())
        };
        self.layout.members.iter().filter(is_replaced).map(|member| member.node).collect()
    }

    /// True if the node serves, by the layout that this look is about.
    pub(crate) fn serves_now(&self, node: NodeId) -> bool {
        let answer = self.answer_at_home(node);
        answer.is_some_and(|answer| answer.mode == NodeMode::Serving && answer.holds(self.layout))
    }

    /// True if some node knows a later layout than this look is about.
    pub(crate) fn is_behind(&self) -> bool {
        let layout = self.layout;
        let is_ours = |answer: &NodeAnswer| answer.cluster == Some(layout.cluster);
        let is_later = |answer: &NodeAnswer| answer.term() > layout.term();
        self.heard.values().any(|(_, answer)| is_ours(answer) && is_later(answer))
    }

    /// True if it holds partitions, or what is left of some that are salvaged.
    pub(crate) fn owns(&self, node: NodeId) -> bool {
        self.layout.rings().any(|ring| ring.owned(node) > 0) || self.is_salvaged_from(node)
    }

    /// True if it holds something of a partition of which nobody else may have all.
    fn is_salvaged_from(&self, node: NodeId) -> bool {
        let is_left = !self.layout.is_lost(node);
        is_left && self.layout.salvaged.values().any(|sources| sources.contains(&node))
    }

    /// Who holds something of the ring that data moves from, and cannot be counted on there: it is lost, something it holds is
    /// damaged, or it does not answer, which a node whose disk is gone does not do either.
    pub(crate) fn uncounted(&self) -> BTreeSet<NodeId> {
        let doubting = self.in_doubt();
        let answers = |node: NodeId| {
            self.answer_of(node).is_some_and(|answer| answer.cluster == Some(self.layout.cluster))
        };
        let counts = |node: NodeId| answers(node) && !self.layout.is_lost(node) && !doubting.contains(&node);
        owners(self.layout.source_ring()).into_iter().filter(|node| !counts(*node)).collect()
    }

    /// True if the ring that data moves from has, without that one to which it moves and without these nodes, all that was
    /// acknowledged. A move that turns back has the nodes that it leaves drop what they have merged; where it leaves none,
    /// nothing is dropped.
    pub(crate) fn can_turn_back(&self, uncounted: &BTreeSet<NodeId>) -> bool {
        self.layout.source_ring().iter().all(|(partition, replicas)| {
            let left = replicas.iter().filter(|replica| !uncounted.contains(&replica.node)).count();
            left >= others_of_a_quorum(replicas.len()) || !self.layout.has_to_merge(partition)
        })
    }

    /// True if of each partition so many replicas are left without these that they share one with every quorum: all
    /// that was acknowledged can be had from them. Of one that is salvaged nobody knows who has what. A replica of what
    /// is gone does not count if something at it is damaged: it may need just what is gone to heal that.
    pub(crate) fn can_do_without(&self, gone: &BTreeSet<NodeId>, doubting: &BTreeSet<NodeId>) -> bool {
        if gone.iter().any(|node| self.is_salvaged_from(*node)) {
            return false;
        }
        let is_left = |node: NodeId| !gone.contains(&node) && !self.layout.is_lost(node);
        self.layout.source_ring().iter().all(|(_, replicas)| {
            let is_less = replicas.iter().any(|replica| gone.contains(&replica.node));
            let counts = |node: NodeId| is_left(node) && !(is_less && doubting.contains(&node));
            let left = replicas.iter().filter(|replica| counts(replica.node)).count();
            left >= others_of_a_quorum(replicas.len())
        })
    }
}

/// The nodes that hold partitions of a ring.
pub(crate) fn owners(ring: &Ring) -> BTreeSet<NodeId> {
    ring.iter().flat_map(|(_, replicas)| replicas.iter().map(|replica| replica.node)).collect()
}
