//! The commands that show a cluster: status, nodes, ring.

use keystore_client::{Layout, NodeId, NodeStatus};
use serde::Serialize;

use crate::args::{Globals, Output};
use crate::failure::Failure;
use crate::output::{print_json, print_line, table};
use crate::survey::{self, Survey};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusReport {
    cluster_id: Option<String>,
    epoch: u64,
    replication_factor: usize,
    members: usize,
    members_serving: usize,
    partitions: u16,
    /// With a write quorum among the replicas that some serving node reaches.
    partitions_available: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    name: String,
    node_id: String,
    zone: String,
    /// `unreachable` if the node could not be asked.
    state: &'static str,
    version: Option<String>,
    partitions: usize,
    /// How many of the other members it has a link to.
    connected: Option<usize>,
    others: usize,
    address: String,
    disk_full: bool,
}

#[derive(Serialize)]
struct PartitionReport {
    partition: u16,
    owners: Vec<OwnerReport>,
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
        Some(layout) => StatusReport {
            cluster_id: Some(layout.cluster.to_string()),
            epoch: layout.epoch.0,
            replication_factor: layout.replication_factor,
            members: layout.members.len(),
            members_serving: survey.serving().filter(|node| layout.member(node.node).is_some()).count(),
            partitions: layout.partitions.get(),
            partitions_available: survey.serving().map(|node| node.partitions_available).max().unwrap_or(0),
        },
        None => StatusReport {
            cluster_id: None,
            epoch: 0,
            replication_factor: 0,
            members: 0,
            members_serving: 0,
            partitions: 0,
            partitions_available: 0,
        },
    };
    match globals.output {
        Output::Json => print_json(&report),
        Output::Table => print_line(&status_lines(&report, &survey)),
    }
}

fn status_lines(report: &StatusReport, survey: &Survey) -> String {
    let Some(cluster) = &report.cluster_id else {
        return format!("not initialised: {} nodes belong to no cluster", survey.answers.len());
    };
    let lines = [
        ("Cluster", cluster.clone()),
        ("Epoch", report.epoch.to_string()),
        ("Replication", report.replication_factor.to_string()),
        ("Nodes", format!("{} of {} serving", report.members_serving, report.members)),
        ("Partitions", format!("{} of {} available", report.partitions_available, report.partitions)),
    ];
    let lines: Vec<_> =
        lines.iter().map(|(name, value)| format!("{:<13}{value}", format!("{name}:"))).collect();
    lines.join("\n")
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
        state: status.state.as_str(),
        version: Some(status.version.clone()),
        partitions: layout.map_or(0, |layout| layout.owned(status.node)),
        connected: Some(status.peers.iter().filter(|peer| peer.connected).count()),
        others: layout.map_or(0, |layout| layout.members.len() - 1),
        address: status.client_address.clone(),
        disk_full: status.disk.full,
    }
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
        state: "unreachable",
        version: None,
        partitions: layout.owned(node),
        connected: None,
        others: layout.members.len() - 1,
        address: seen.map_or_else(String::new, |peer| peer.client_address.clone()),
        disk_full: false,
    }
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
    let reports: Vec<_> = layout
        .partitions
        .all()
        .map(|partition| PartitionReport {
            partition: partition.0,
            owners: layout
                .rings()
                .flat_map(|ring| ring.replicas(partition))
                .filter_map(|replica| layout.member(replica.node))
                .map(|member| OwnerReport { name: member.name.clone(), node_id: member.node.to_string() })
                .collect(),
        })
        .collect();
    match globals.output {
        Output::Json => print_json(&reports),
        Output::Table => {
            let owners = |report: &PartitionReport| {
                report.owners.iter().map(|owner| owner.name.as_str()).collect::<Vec<_>>().join(",")
            };
            let rows: Vec<_> =
                reports.iter().map(|report| vec![report.partition.to_string(), owners(report)]).collect();
            print_line(&table(&["PARTITION", "OWNERS"], &rows))
        }
    }
}
