//! How far a move of data is, summed over the nodes; and who is behind the layout in force.

use keystore_client::{Layout, NodeId, NodeStatus, Phase};

use crate::output::bytes;

/// How much of what has to be taken over is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Each counts at each node that takes it over.
    pub partitions: usize,
    pub done: usize,
    /// Since the nodes' processes started.
    pub bytes: u64,
    /// Until the slowest of those who can tell is done.
    pub remaining_ms: Option<u64>,
    /// What a node with the newest layout has found missing before the move can end; `None` if nothing is.
    pub waits_for: Option<String>,
}

impl Progress {
    /// `None` unless data moves under this layout.
    pub(crate) fn of<'a>(
        layout: &Layout,
        statuses: impl Iterator<Item = &'a NodeStatus> + Clone,
    ) -> Option<Self> {
        if !layout.is_moving() {
            return None;
        }
        let moving = layout.ring().iter().filter(|(partition, _)| layout.has_to_merge(*partition));
        let takers =
            moving.flat_map(|(_, replicas)| replicas).filter(|replica| !layout.is_lost(replica.node));
        let moves = statuses.filter(|status| status.epoch == layout.epoch).map(|status| &status.transfer);
        Some(Self {
            partitions: takers.count(),
            done: moves.clone().map(|transfer| transfer.partitions_done as usize).sum(),
            bytes: moves.clone().map(|transfer| transfer.bytes).sum(),
            remaining_ms: moves.clone().filter_map(|transfer| transfer.remaining_ms).max(),
            waits_for: match moves.clone().any(|transfer| transfer.waits_for.is_none()) {
                true => None,
                false => moves.clone().find_map(|transfer| transfer.waits_for.clone()).or_else(nobody_says),
            },
        })
    }

    /// For people; `since` is how many bytes do not count.
    pub(crate) fn line(&self, since: u64) -> String {
        let Self { partitions, done, bytes: taken, .. } = self;
        let taken = bytes(taken.saturating_sub(since) as f64);
        format!("{done} of {partitions} partitions taken over, {taken} bytes")
    }
}

fn nobody_says() -> Option<String> {
    Some("no node that has this layout can be asked".to_owned())
}

/// How a phase is called.
pub(crate) fn phase_name(layout: &Layout) -> &'static str {
    match layout.phase {
        Phase::Stable(_) => "stable",
        Phase::Joint { .. } => "joint",
    }
}

/// The members that have not acknowledged the layout, as far as anybody has heard, with the latest epoch that they
/// have; epoch 0 if nobody has heard of any. Who is lost is not waited for.
pub(crate) fn behind<'a>(
    layout: &Layout,
    statuses: &(impl Iterator<Item = &'a NodeStatus> + Clone),
) -> Vec<(NodeId, u64)> {
    let acknowledged = |node: NodeId| {
        let own = statuses.clone().filter(|status| status.node == node).map(|status| status.epoch);
        let heard = statuses.clone().flat_map(|status| &status.peers).filter(|peer| peer.node == node);
        own.chain(heard.map(|peer| peer.epoch)).max().unwrap_or_default()
    };
    let members = layout.members.iter().filter(|member| !member.is_lost);
    let members = members.map(|member| (member.node, acknowledged(member.node)));
    members.filter(|(_, epoch)| *epoch < layout.epoch).map(|(node, epoch)| (node, epoch.0)).collect()
}
