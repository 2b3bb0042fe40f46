//! What can be typed: flags, commands and their checks.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keystore_client::{Consistency, DEFAULT_KEYSPACE, Durability};

pub(crate) const ENDPOINT_DEFAULT: &str = "127.0.0.1:7400";
pub(crate) const ADMIN_ENDPOINT_DEFAULT: &str = "127.0.0.1:7401";

#[derive(Debug, Parser)]
#[command(name = "keystorectl", version, about = "Talks to a KeyStore cluster.")]
#[command(disable_help_subcommand = true, arg_required_else_help = true, after_help = EXIT_STATUS)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 done, 1 other error, 2 usage, 3 no such key, 4 failed (nothing was \
applied), 5 outcome unknown (a write may be applied), 6 refused, 7 cannot connect.";

#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// A node's or Service's address for clients; may be repeated.
    #[arg(long = "endpoint", global = true, value_name = "HOST:7400", env = "KEYSTORE_ENDPOINTS")]
    #[arg(value_delimiter = ',', default_value = ENDPOINT_DEFAULT)]
    pub endpoints: Vec<String>,

    /// A node's address for administration; may be repeated.
    #[arg(
        long = "admin-endpoint",
        global = true,
        value_name = "HOST:7401",
        env = "KEYSTORE_ADMIN_ENDPOINTS"
    )]
    #[arg(value_delimiter = ',', default_value = ADMIN_ENDPOINT_DEFAULT)]
    pub admin_endpoints: Vec<String>,

    /// The cluster's name: reaches its pods through port-forwards, whatever the endpoints say.
    #[arg(short, long, global = true, env = "KEYSTORE_CLUSTER")]
    pub cluster: Option<String>,

    /// The cluster's namespace; by default that of the kubeconfig's context.
    #[arg(short, long, global = true, env = "KEYSTORE_NAMESPACE")]
    pub namespace: Option<String>,

    #[arg(long, global = true, env = "KEYSTORE_KEYSPACE", default_value = DEFAULT_KEYSPACE)]
    pub keyspace: String,

    /// How many replicas have to answer; by default what the cluster says.
    #[arg(long, global = true, env = "KEYSTORE_CONSISTENCY")]
    pub consistency: Option<ConsistencyArg>,

    /// The deadline of each request, such as 500ms, 5s or 1m.
    #[arg(long, global = true, env = "KEYSTORE_TIMEOUT", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,

    #[arg(short, long, global = true, env = "KEYSTORE_OUTPUT", default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsistencyArg {
    One,
    Quorum,
    All,
}

impl From<ConsistencyArg> for Consistency {
    fn from(consistency: ConsistencyArg) -> Self {
        match consistency {
            ConsistencyArg::One => Self::One,
            ConsistencyArg::Quorum => Self::Quorum,
            ConsistencyArg::All => Self::All,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DurabilityArg {
    /// Synced to disk before it is acknowledged.
    Synced,
    /// Written, and synced soon after: a power cut may lose it.
    Periodic,
}

impl From<DurabilityArg> for Durability {
    fn from(durability: DurabilityArg) -> Self {
        match durability {
            DurabilityArg::Synced => Self::Synced,
            DurabilityArg::Periodic => Self::Periodic,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints the value of a key, raw, and nothing else.
    Get { key: OsString },
    /// Writes a value and prints its stamp.
    Put {
        key: OsString,
        /// `-` reads it from stdin.
        value: OsString,
        /// What an acknowledged write has reached; by default what the cluster says.
        #[arg(long)]
        durability: Option<DurabilityArg>,
    },
    /// Removes a key, whether it exists or not, and prints the stamp of that.
    Delete {
        key: OsString,
        /// What an acknowledged write has reached; by default what the cluster says.
        #[arg(long)]
        durability: Option<DurabilityArg>,
    },
    /// Says how the cluster is.
    Status,
    /// Lists the owners of every partition, the preferred one first.
    Ring,
    /// Lists the nodes.
    Nodes,
    /// Makes a cluster of the nodes at all the given admin endpoints. On Kubernetes the operator does that.
    Init(InitArgs),
    /// Puts load on the cluster and measures it. Writes keys that start with "bench/".
    Bench(BenchArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    /// On how many nodes each partition is kept; fixed for the cluster's life.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub replication_factor: u8,
    /// A power of two from 16 to 4096; fixed for the cluster's life.
    #[arg(long, default_value_t = 256)]
    pub partitions: u32,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// How many requests are under way at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub value_bytes: u32,
    /// The share of gets among all requests, from 0 to 1; the rest are puts.
    #[arg(long, default_value_t = 0.5, value_parser = parse_share)]
    pub read_share: f64,
    /// How many different keys; they are written before the measurement if there are to be gets.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// What an acknowledged write has reached; by default what the cluster says.
    #[arg(long)]
    pub durability: Option<DurabilityArg>,
    /// Threads of this process, each with connections of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

/// A number with a unit, in one part: 500ms, 5s, 1.5m, 2h.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || "a duration is a number with a unit, such as 500ms, 5s, 1m or 1h".to_owned();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(problem)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(problem()),
    };
    let number: f64 = number.parse().map_err(|_| problem())?;
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())?;
    if duration.is_zero() || duration > Duration::from_secs(86_400) {
        return Err("a duration is longer than nothing and at most 24h".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [("5s", 5_000), ("500ms", 500), ("1m", 60_000), ("1.5s", 1_500), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "5 s", "-1s", "5days", "0s", "25h", "1e999s", "NaNs", "infs"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
