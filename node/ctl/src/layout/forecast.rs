//! What a change of the layout moves, node by node. Bytes are an estimate from the disk use of the nodes that hold data.

use keystore_client::{Layout, NodeId, NodeStatus, Partition, Phase};
use serde::Serialize;

use super::steps::Steps;
use crate::output::{bytes, table};
use crate::transfer::phase_name;

/// One node's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeForecast {
    name: String,
    node_id: String,
    partitions_now: usize,
    partitions_then: usize,
    gained: usize,
    lost: usize,
    /// About; `None` if no node that holds data has said what its disk holds.
    bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forecast {
    nodes: Vec<NodeForecast>,
}

impl Forecast {
    pub(super) fn of<'a>(
        now: &Layout,
        then: &Layout,
        statuses: impl Iterator<Item = &'a NodeStatus>,
    ) -> Self {
        let partition_bytes = partition_bytes(now, statuses);
        let gone = now.members.iter().filter(|member| then.member(member.node).is_none());
        let nodes = then.members.iter().chain(gone).map(|member| {
            let node = member.node;
            let all = || now.partitions.all();
            let (before, after) = (|p| now.is_replica(p, node), |p| holds_then(now, then, (p, node)));
            let gained = all().filter(|p| !before(*p) && after(*p)).count();
            NodeForecast {
                name: member.name.clone(),
                node_id: node.to_string(),
                partitions_now: all().filter(|p| before(*p)).count(),
                partitions_then: all().filter(|p| after(*p)).count(),
                gained,
                lost: all().filter(|p| before(*p) && !after(*p)).count(),
                // Of what both hold, a comparison is all that is sent.
                bytes: partition_bytes.map(|each| (each * gained as f64) as u64),
            }
        });
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by(|a, b| (&a.name, &a.node_id).cmp(&(&b.name, &b.node_id)));
        Self { nodes }
    }
}

/// Once a move that begins has ended, the new ring alone is left.
fn holds_then(now: &Layout, then: &Layout, (partition, node): (Partition, NodeId)) -> bool {
    match begins(now, then) {
        true => then.ring().is_replica(partition, node),
        false => then.is_replica(partition, node),
    }
}

fn begins(now: &Layout, then: &Layout) -> bool {
    matches!((&now.phase, &then.phase), (Phase::Stable(_), Phase::Joint { .. }))
}

/// What a partition has on a disk, on average over the nodes that hold any.
fn partition_bytes<'a>(now: &Layout, statuses: impl Iterator<Item = &'a NodeStatus>) -> Option<f64> {
    let holders = statuses.filter(|status| status.disk.total_bytes > 0 && now.owned(status.node) > 0);
    let (used, partitions) = holders.fold((0, 0), |(used, partitions), status| {
        let disk = status.disk.total_bytes.saturating_sub(status.disk.available_bytes);
        (used + disk, partitions + now.owned(status.node))
    });
    (partitions > 0).then(|| used as f64 / partitions as f64)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StepReport {
    epoch: u64,
    phase: &'static str,
    /// What this step does.
    step: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlanReport {
    /// In force.
    epoch: u64,
    phase: &'static str,
    /// What would be decided, in this order.
    steps: Vec<StepReport>,
    nodes: Vec<NodeForecast>,
    /// Over all nodes.
    gained: usize,
    lost: usize,
    bytes: Option<u64>,
    /// Why it cannot be decided yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
}

impl PlanReport {
    pub(super) fn new(now: &Layout, steps: &Steps, forecast: Forecast, waits_for: Option<String>) -> Self {
        let step = |layout: &Layout, step: String| StepReport {
            epoch: layout.epoch.0,
            phase: phase_name(layout),
            step,
        };
        let admission = steps.admission.as_ref();
        let admission = admission.map(|layout| step(layout, format!("{} admitted", steps.admitted(now))));
        let change = steps.change.as_ref().map(|layout| match (begins(now, layout), layout.is_joint()) {
            (true, _) => step(layout, "data begins to move".to_owned()),
            (false, false) if now.is_joint() => step(layout, "the move ends".to_owned()),
            (false, _) => step(layout, "nothing moves".to_owned()),
        });
        let Forecast { nodes } = forecast;
        Self {
            epoch: now.epoch.0,
            phase: phase_name(now),
            steps: admission.into_iter().chain(change).collect(),
            gained: nodes.iter().map(|node| node.gained).sum(),
            lost: nodes.iter().map(|node| node.lost).sum(),
            bytes: nodes.iter().map(|node| node.bytes).sum(),
            nodes,
            waits_for,
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { epoch, phase, steps, nodes, gained, lost, bytes, waits_for } = self;
        let header = ["NAME", "NOW", "THEN", "GAINED", "LOST", "RECEIVES"];
        let mut lines = vec![table(&header, &nodes.iter().map(row).collect::<Vec<_>>())];
        lines.push(format!(
            "in all {gained} partitions gained, {lost} lost, to be received: {}",
            about(*bytes)
        ));
        lines.push(format!("epoch {epoch}, {phase}"));
        lines.extend(
            steps.iter().map(|StepReport { epoch, phase, step }| format!("epoch {epoch}, {phase}: {step}")),
        );
        if steps.is_empty() {
            lines.push("nothing would change".to_owned());
        }
        lines.extend(waits_for.iter().map(|problem| format!("not yet: {problem}")));
        lines.join("\n")
    }
}

fn row(node: &NodeForecast) -> Vec<String> {
    let NodeForecast { name, node_id: _, partitions_now, partitions_then, gained, lost, bytes } = node;
    let counts = [partitions_now, partitions_then, gained, lost].map(ToString::to_string);
    [name.clone()].into_iter().chain(counts).chain([about(*bytes)]).collect()
}

fn about(size: Option<u64>) -> String {
    match size {
        None => "an unknown size".to_owned(),
        Some(0) => "nothing".to_owned(),
        Some(size) => format!("about {} bytes", bytes(size as f64)),
    }
}
