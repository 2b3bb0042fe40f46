//! The commands that show a cluster: status, nodes, ring.

use keystore_client::{
    DoubtedKey, HintStatus, Layout, Member, NodeId, NodeStatus, Partition, Ring, node_state_name,
};
use serde::Serialize;

use crate::args::{Globals, Output};
use crate::failure::Failure;
use crate::output::{bytes, print_json, print_line, table};
use crate::survey::{self, Survey};
use crate::transfer::{self, Progress};

/// How many of a node's partitions in doubt the status names.
const PARTITIONS_NAMED_MAX: usize = 8;

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusReport {
    cluster_id: Option<String>,
    epoch: u64,
    /// stable; or joint, while data moves.
    phase: Option<&'static str>,
    replication_factor: usize,
    members: usize,
    members_serving: usize,
    partitions: u16,
    /// With a write quorum among the replicas that some serving node reaches.
    partitions_available: u32,
    /// Keys of which a node has found its record damaged and has not healed it yet, summed over the nodes.
    doubted_keys: u32,
    /// Of all nodes together.
    hints: HintReport,
    /// While data moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer: Option<TransferReport>,
    /// Members that have not acknowledged the layout.
    behind: Vec<BehindReport>,
}

/// How far the data has moved.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransferReport {
    /// To take over, and taken over; each counts at each node that does.
    partitions: usize,
    partitions_done: usize,
    /// Since the nodes' processes started.
    bytes: u64,
    /// About how long it will take at the pace so far; none while nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_ms: Option<u64>,
    /// What is missing before the move can end.
    waits_for: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BehindReport {
    name: String,
    node_id: String,
    /// The latest that it has acknowledged; 0 if nobody has heard of any.
    epoch: u64,
}

/// Writes that nodes keep for others which may have missed them.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct HintReport {
    pending: u64,
    bytes: u64,
    partitions_wanted_by_repair: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DoubtReport {
    keyspace: String,
    key: String,
    doubted_ms: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    name: String,
    node_id: String,
    zone: String,
    /// `unreachable` if the node could not be asked, `lost` if it never will be again.
    state: &'static str,
    version: Option<String>,
    partitions: usize,
    /// How many of the other members it has a link to.
    connected: Option<usize>,
    others: usize,
    address: String,
    disk_full: bool,
    /// For how many keys it counts for nothing, since it may have lost something of them.
    doubted_keys: u32,
    /// Some of those, the oldest first.
    doubted: Vec<DoubtReport>,
    /// The partitions in which it counts for nothing, since something of them cannot be read.
    doubted_partitions: Vec<u32>,
    /// Kept of a node that its directory is not any more.
    set_aside_bytes: u64,
    hints: HintReport,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PartitionReport {
    partition: u16,
    owners: Vec<OwnerReport>,
    /// While data moves: those that are to own it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_owners: Option<Vec<OwnerReport>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnerReport {
    name: String,
    node_id: String,
}

pub(crate) async fn status(globals: &Globals) -> Result<(), Failure> {
    let survey = survey::ask_all(globals).await?;
    let report = match survey.layout().await? {
        Some(layout) => report_status(&layout, &survey),
        None => StatusReport::default(),
    };
    match globals.output {
        Output::Json => print_json(&report),
        Output::Table => print_line(&status_lines(&report, &survey)),
    }
}

fn report_status(layout: &Layout, survey: &Survey) -> StatusReport {
    let statuses = survey.answers.iter().map(|answer| &answer.status);
    let progress = Progress::of(layout, statuses.clone());
    let behind = transfer::behind(layout, &statuses).into_iter().map(|(node, epoch)| BehindReport {
        name: layout.member(node).map_or_else(String::new, |member| member.name.clone()),
        node_id: node.to_string(),
        epoch,
    });
    StatusReport {
        cluster_id: Some(layout.cluster.to_string()),
        epoch: layout.epoch.0,
        phase: Some(transfer::phase_name(layout)),
        replication_factor: layout.replication_factor,
        members: layout.members.len(),
        members_serving: survey.serving().filter(|node| layout.member(node.node).is_some()).count(),
        partitions: layout.partitions.get(),
        partitions_available: survey.serving().map(|node| node.partitions_available).max().unwrap_or(0),
        doubted_keys: statuses.clone().map(|status| status.doubted_keys).sum(),
        hints: report_hints(statuses.clone().map(|status| &status.hints)),
        transfer: progress.map(|progress| TransferReport {
            partitions: progress.partitions,
            partitions_done: progress.done,
            bytes: progress.bytes,
            remaining_ms: progress.remaining_ms,
            waits_for: progress.waits_for.map(|problem| layout.with_names(&problem)),
        }),
        behind: behind.collect(),
    }
}

fn status_lines(report: &StatusReport, survey: &Survey) -> String {
    let Some(cluster) = &report.cluster_id else {
        return format!("not initialised: {} nodes belong to no cluster", survey.answers.len());
    };
    let lines = [
        ("Cluster", cluster.clone()),
        ("Epoch", format!("{}, {}", report.epoch, report.phase.unwrap_or_default())),
        ("Replication", report.replication_factor.to_string()),
        ("Nodes", format!("{} of {} serving", report.members_serving, report.members)),
        ("Partitions", format!("{} of {} available", report.partitions_available, report.partitions)),
    ];
    let statuses = survey.answers.iter().map(|answer| &answer.status);
    let doubts = statuses.clone().filter(|status| status.doubted_keys > 0);
    let doubts = doubts.map(|status| ("In doubt", doubt_line(status)));
    let unreadable = statuses.filter(|status| !status.doubted_partitions.is_empty());
    let doubts = doubts.chain(unreadable.map(|status| ("In doubt", partitions_line(status))));
    let lines: Vec<_> = lines
        .into_iter()
        .chain(report.transfer.iter().flat_map(transfer_lines))
        .chain(report.behind.iter().map(|behind| ("Behind", behind_line(behind))))
        .chain(hint_line(&report.hints))
        .chain(doubts)
        .map(|(name, value)| format!("{:<13}{value}", format!("{name}:")))
        .collect();
    lines.join("\n")
}

fn transfer_lines(transfer: &TransferReport) -> [(&'static str, String); 2] {
    let TransferReport { partitions, partitions_done, bytes: taken, remaining_ms, waits_for } = transfer;
    let left = remaining_ms.map(|ms| format!(", about {} s left", ms.div_ceil(1_000))).unwrap_or_default();
    let moved = format!(
        "{partitions_done} of {partitions} partitions taken over, {} bytes since the nodes started{left}",
        bytes(*taken as f64)
    );
    let nothing = || "nothing more: the move can end".to_owned();
    [("Moving", moved), ("Waits for", waits_for.clone().unwrap_or_else(nothing))]
}

fn behind_line(BehindReport { name, node_id: _, epoch }: &BehindReport) -> String {
    match epoch {
        0 => format!("{name}, nobody has heard which epoch it has acknowledged"),
        _ => format!("{name}, has acknowledged epoch {epoch}"),
    }
}

/// `None` while there is nothing to be said of hints.
fn hint_line(hints: &HintReport) -> Option<(&'static str, String)> {
    let HintReport { pending, bytes, partitions_wanted_by_repair: wanted } = hints;
    let kept = format!("{pending} pending, {bytes} bytes");
    match (pending, wanted) {
        (0, 0) => None,
        (_, 0) => Some(("Hints", kept)),
        (_, _) => Some(("Hints", format!("{kept}; some were dropped: {wanted} partitions need repair"))),
    }
}

/// For how many keys a node is in doubt, and for which one the longest.
fn doubt_line(status: &NodeStatus) -> String {
    let keys = format!("{}, {} keys", status.name, status.doubted_keys);
    match status.doubted.first() {
        Some(DoubtedKey { keyspace, key, doubted_ms }) => {
            format!("{keys}, {keyspace}/{} for {} s", key.escape_ascii(), doubted_ms / 1_000)
        }
        None => keys,
    }
}

/// In which partitions a node counts for nothing, and what ends that.
fn partitions_line(status: &NodeStatus) -> String {
    let numbers = status.doubted_partitions.iter().map(|doubted| doubted.partition.to_string());
    let numbers: Vec<_> = numbers.take(PARTITIONS_NAMED_MAX).collect();
    let seconds = status.doubted_partitions.iter().map(|doubted| doubted.doubted_ms / 1_000).max();
    format!(
        "{}, all of {} partitions ({}{}) for up to {} s: something of them cannot be read there; if that does not \
         end by itself, replace the node",
        status.name,
        status.doubted_partitions.len(),
        numbers.join(", "),
        if numbers.len() < status.doubted_partitions.len() { ", …" } else { "" },
        seconds.unwrap_or_default(),
    )
}

pub(crate) async fn nodes(globals: &Globals) -> Result<(), Failure> {
    let survey = survey::ask_all(globals).await?;
    let reports = match survey.layout().await? {
        Some(layout) => report_members(&survey, &layout),
        None => survey.answers.iter().map(|answer| report_node(&answer.status, None)).collect(),
    };
    match globals.output {
        Output::Json => print_json(&reports),
        Output::Table => {
            let header = ["NAME", "ID", "ZONE", "STATE", "VERSION", "PARTITIONS", "CONNECTED", "ADDRESS"];
            print_line(&table(&header, &reports.iter().map(node_row).collect::<Vec<_>>()))
        }
    }
}

/// The members by name, and behind them whoever was asked and is none.
fn report_members(survey: &Survey, layout: &Layout) -> Vec<NodeReport> {
    let mut reports: Vec<_> = layout
        .members
        .iter()
        .map(|member| match survey.node(member.node) {
            Some(status) => report_node(status, Some(layout)),
            None => report_unreachable(survey, layout, member.node),
        })
        .collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    let strangers = survey.answers.iter().filter(|answer| layout.member(answer.status.node).is_none());
    reports.extend(strangers.map(|answer| report_node(&answer.status, None)));
    reports
}

fn report_node(status: &NodeStatus, layout: Option<&Layout>) -> NodeReport {
    let member = layout.and_then(|layout| layout.member(status.node));
    NodeReport {
        name: status.name.clone(),
        node_id: status.node.to_string(),
        zone: member.map_or_else(String::new, |member| member.zone.clone()),
        state: node_state_name(status.state),
        version: Some(status.version.clone()),
        partitions: layout.map_or(0, |layout| layout.owned(status.node)),
        connected: Some(status.peers.iter().filter(|peer| peer.connected).count()),
        others: layout.map_or(0, |layout| layout.members.len() - 1),
        address: status.client_address.clone(),
        disk_full: status.disk.full,
        doubted_keys: status.doubted_keys,
        doubted: status.doubted.iter().map(report_doubt).collect(),
        doubted_partitions: status.doubted_partitions.iter().map(|doubted| doubted.partition).collect(),
        set_aside_bytes: status.disk.set_aside_bytes,
        hints: report_hints([&status.hints]),
    }
}

fn report_hints<'a>(hints: impl IntoIterator<Item = &'a HintStatus>) -> HintReport {
    hints.into_iter().fold(HintReport::default(), |sum, hints| HintReport {
        pending: sum.pending + hints.pending,
        bytes: sum.bytes + hints.bytes,
        partitions_wanted_by_repair: sum.partitions_wanted_by_repair + hints.partitions_wanted_by_repair,
    })
}

/// What others know of a member that could not be asked.
fn report_unreachable(survey: &Survey, layout: &Layout, node: NodeId) -> NodeReport {
    let member = layout.member(node);
    let seen = survey
        .answers
        .iter()
        .flat_map(|answer| &answer.status.peers)
        .find(|peer| peer.node == node && !peer.client_address.is_empty());
    NodeReport {
        name: member.map_or_else(String::new, |member| member.name.clone()),
        node_id: node.to_string(),
        zone: member.map_or_else(String::new, |member| member.zone.clone()),
        state: if layout.is_lost(node) { "lost" } else { "unreachable" },
        version: None,
        partitions: layout.owned(node),
        connected: None,
        others: layout.members.len() - 1,
        address: seen.map_or_else(String::new, |peer| peer.client_address.clone()),
        disk_full: false,
        doubted_keys: 0,
        doubted: Vec::new(),
        doubted_partitions: Vec::new(),
        set_aside_bytes: 0,
        hints: HintReport::default(),
    }
}

fn report_doubt(DoubtedKey { keyspace, key, doubted_ms }: &DoubtedKey) -> DoubtReport {
    let key = key.escape_ascii().to_string();
    DoubtReport { keyspace: keyspace.clone(), key, doubted_ms: *doubted_ms }
}

fn node_row(node: &NodeReport) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let connected = node.connected.map(|connected| format!("{connected}/{}", node.others));
    vec![
        node.name.clone(),
        node.node_id.clone(),
        or_dash(&node.zone),
        node.state.to_owned(),
        or_dash(node.version.as_deref().unwrap_or_default()),
        node.partitions.to_string(),
        or_dash(&connected.unwrap_or_default()),
        or_dash(&node.address),
    ]
}

pub(crate) async fn ring(globals: &Globals) -> Result<(), Failure> {
    let layout = survey::ask(globals).await?.layout_of_cluster().await?;
    let report = |partition: Partition| PartitionReport {
        partition: partition.0,
        owners: report_owners(&layout, layout.source_ring(), partition),
        next_owners: layout.is_joint().then(|| report_owners(&layout, layout.ring(), partition)),
    };
    let reports: Vec<_> = layout.partitions.all().map(report).collect();
    match globals.output {
        Output::Json => print_json(&reports),
        Output::Table => {
            let header = ["PARTITION", "OWNERS", "NEXT OWNERS"];
            let columns = if layout.is_joint() { 3 } else { 2 };
            let header = header.iter().copied().take(columns).collect::<Vec<_>>();
            print_line(&table(&header, &reports.iter().map(partition_row).collect::<Vec<_>>()))
        }
    }
}

fn report_owners(layout: &Layout, ring: &Ring, partition: Partition) -> Vec<OwnerReport> {
    let owners = ring.replicas(partition).iter().filter_map(|replica| layout.member(replica.node));
    let owner = |member: &Member| OwnerReport { name: member.name.clone(), node_id: member.node.to_string() };
    owners.map(owner).collect()
}

fn partition_row(PartitionReport { partition, owners, next_owners }: &PartitionReport) -> Vec<String> {
    let names = |owners: &Vec<OwnerReport>| {
        owners.iter().map(|owner| owner.name.as_str()).collect::<Vec<_>>().join(",")
    };
    [partition.to_string(), names(owners)].into_iter().chain(next_owners.as_ref().map(names)).collect()
}
