//! What can be typed behind `layout`.

use clap::{ArgGroup, Args, Subcommand};
use keystore_client::KeyspaceMode;

use super::parse_keyspace;

#[derive(Debug, Subcommand)]
pub(crate) enum LayoutCommand {
    /// Shows what a change would move, and changes nothing.
    Plan(ChangeArgs),
    /// Makes a change: has the nodes decide on the next layout.
    Propose {
        #[command(flatten)]
        change: ChangeArgs,
        #[command(flatten)]
        manner: Manner,
    },
    /// Ends the move that is under way, with the data where it was; short for propose --abort.
    Abort,
    /// Shows the last layouts, as a node has taken them up: when, and what changed with each.
    History,
}

/// How a change is made.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Manner {
    /// Waits until the data has moved, and ends the move; --timeout is for all of that. What is under way then goes on:
    /// `propose --finish --wait` waits again.
    #[arg(long)]
    pub wait: bool,
    /// Says nothing while it waits.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(false))]
pub(crate) struct ChangeArgs {
    /// Moves the data to exactly these nodes: members, and those of --join. Others stay members that hold nothing.
    #[arg(long, group = "change", value_name = "NAME|UUID", value_delimiter = ',')]
    nodes: Vec<String>,
    /// Ends the move that is under way: the new owners stand alone.
    #[arg(long, group = "change")]
    finish: bool,
    /// Ends the move that is under way, with the data where it was.
    #[arg(long, group = "change")]
    abort: bool,
    /// These members are dead for good: nobody waits for them any more, and they never come back.
    #[arg(long, group = "change", value_name = "NAME|UUID", value_delimiter = ',')]
    lost: Vec<String>,
    /// These members, which hold nothing, are none any more.
    #[arg(long, group = "change", value_name = "NAME|UUID", value_delimiter = ',')]
    dismiss: Vec<String>,
    /// Adds a keyspace, with its mode, lww or siblings; may be repeated.
    #[arg(long = "create-keyspace", group = "change", value_name = "NAME=MODE", value_parser = parse_keyspace)]
    keyspaces: Vec<(String, KeyspaceMode)>,
    #[command(flatten)]
    joining: Joining,
}

/// For which no nodes are described.
const OTHER_CHANGES: [&str; 5] = ["finish", "abort", "lost", "dismiss", "keyspaces"];

/// Which nodes of those that are to hold data are no members yet, and what is known of nodes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Joining {
    /// The address for administration of a node that belongs to no cluster and is to join; may be repeated.
    #[arg(long, conflicts_with_all = OTHER_CHANGES, value_name = "HOST:7401", value_delimiter = ',')]
    pub join: Vec<String>,
    /// The failure domain of a node of --nodes; may be repeated.
    #[arg(long, conflicts_with_all = OTHER_CHANGES, value_name = "NAME=ZONE", value_parser = parse_zone)]
    pub zone: Vec<(String, String)>,
    /// The share of data of a node of --nodes relative to others, by default 1; may be repeated.
    #[arg(long, conflicts_with_all = OTHER_CHANGES, value_name = "NAME=WEIGHT", value_parser = parse_weight)]
    pub weight: Vec<(String, u32)>,
}

/// The one thing that is to change.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Nodes { names: Vec<String>, joining: Joining },
    Finish,
    Abort,
    Lost(Vec<String>),
    Dismiss(Vec<String>),
    Keyspaces(Vec<(String, KeyspaceMode)>),
}

impl From<ChangeArgs> for Wanted {
    fn from(args: ChangeArgs) -> Self {
        let ChangeArgs { nodes, finish, abort, lost, dismiss, keyspaces, joining } = args;
        match () {
            () if finish => Self::Finish,
            () if abort => Self::Abort,
            () if !lost.is_empty() => Self::Lost(lost),
            () if !dismiss.is_empty() => Self::Dismiss(dismiss),
            () if !keyspaces.is_empty() => Self::Keyspaces(keyspaces),
            () => Self::Nodes { names: nodes, joining },
        }
    }
}

fn parse_zone(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, zone)) if !name.is_empty() => Ok((name.to_owned(), zone.to_owned())),
        _ => Err("a zone is given to a node by its name, such as demo-3=zone-a".to_owned()),
    }
}

fn parse_weight(text: &str) -> Result<(String, u32), String> {
    match text.split_once('=').map(|(name, weight)| (name, weight.parse())) {
        Some((name, Ok(weight @ 1..=1_000))) if !name.is_empty() => Ok((name.to_owned(), weight)),
        _ => Err("a weight from 1 to 1000 is given to a node by its name, such as demo-3=2".to_owned()),
    }
}
