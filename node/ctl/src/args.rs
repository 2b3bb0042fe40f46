//! What can be typed: flags, commands and their checks.

mod layout;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keystore_client::{
    Causal, Consistency, Context, DEFAULT_KEYSPACE, Durability, KeyspaceMode, VALUE_BYTES_MAX, WriteOptions,
};

use crate::data::parse_token;
pub(crate) use layout::{Joining, LayoutCommand, Manner, Wanted};

pub(crate) const ENDPOINT_DEFAULT: &str = "127.0.0.1:7400";

#[derive(Debug, Parser)]
#[command(name = "keystorectl", version, about = "Talks to a KeyStore cluster.")]
#[command(disable_help_subcommand = true, arg_required_else_help = true, after_help = EXIT_STATUS)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

impl Globals {
    /// Of each request.
    pub(crate) fn timeout(&self) -> Duration {
        self.given_timeout.unwrap_or(TIMEOUT_DEFAULT)
    }

    /// The same for a command whose timeout is that of the whole.
    pub(crate) fn with_short_requests(&self) -> Self {
        Self { given_timeout: Some(self.timeout().min(TIMEOUT_DEFAULT)), ..self.clone() }
    }

    pub(crate) fn admin_endpoints(&self) -> Vec<String> {
        match &self.given_admin_endpoints[..] {
            [] => self.endpoints.iter().map(|endpoint| admin_of(endpoint)).collect(),
            given => given.to_vec(),
        }
    }
}

/// Nodes listen for administration on the port after that for clients, unless they are configured otherwise.
fn admin_of(endpoint: &str) -> String {
    let next =
        |(host, port): (&str, &str)| Some(format!("{host}:{}", port.parse::<u16>().ok()?.checked_add(1)?));
    endpoint.rsplit_once(':').and_then(next).unwrap_or_else(|| endpoint.to_owned())
}

const EXIT_STATUS: &str = "Exit status: 0 done, 1 other error, 2 usage, 3 no such key, 4 failed (nothing was \
applied), 5 outcome unknown (a write may be applied), 6 refused, 7 cannot connect.";

#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// A node's or Service's address for clients; may be repeated.
    #[arg(long = "endpoint", global = true, value_name = "HOST:7400", env = "KEYSTORE_ENDPOINTS")]
    #[arg(value_delimiter = ',', default_value = ENDPOINT_DEFAULT)]
    pub endpoints: Vec<String>,

    /// A node's address for administration; may be repeated. By default the port after that of each endpoint.
    #[arg(
        long = "admin-endpoint",
        global = true,
        value_name = "HOST:7401",
        env = "KEYSTORE_ADMIN_ENDPOINTS"
    )]
    #[arg(value_delimiter = ',')]
    given_admin_endpoints: Vec<String>,

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

    /// The deadline of each request, such as 500ms, 5s or 1m; of the whole where a command waits (--wait). By default
    /// 5s for each request, and none for the whole.
    #[arg(long = "timeout", global = true, env = "KEYSTORE_TIMEOUT", value_name = "TIMEOUT")]
    #[arg(value_parser = parse_duration)]
    pub given_timeout: Option<Duration>,

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
    /// Prints the value of a key, raw, and nothing else; several siblings one a line.
    Get { key: OsString },
    /// Writes a value and prints its stamp.
    Put {
        key: OsString,
        /// `-` reads it from stdin.
        value: OsString,
        /// How long the value lives, such as 90s, 1h or 30d; by default for ever.
        #[arg(long, value_parser = parse_ttl)]
        ttl: Option<Duration>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Removes a key, whether it exists or not, and prints the stamp of that.
    Delete {
        key: OsString,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Prints the keys of the keyspace and their values, a line each, with a tab between; several siblings have a
    /// line each. The order is that of the hash ring, always the same.
    Scan(ScanArgs),
    /// Says how the cluster is.
    Status,
    /// Lists the owners of every partition, the preferred one first.
    Ring,
    /// Lists the nodes.
    Nodes,
    /// Makes a cluster of the nodes at all the given admin endpoints. On Kubernetes the operator does that.
    Init(InitArgs),
    /// Changes what all nodes agree upon: which of them hold data, and the keyspaces.
    #[command(subcommand)]
    Layout(LayoutCommand),
    /// Lets the cluster go on without members that are lost for good, where too few are left to decide on that. Shows what
    /// it would mean; --yes does it.
    Recover(RecoverArgs),
    /// Puts load on the cluster and measures it. It writes keys of its own, which start with --prefix.
    Bench(BenchArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RecoverArgs {
    /// These members are dead for good: whatever only they had is lost, and they never come back.
    #[arg(long, value_name = "NAME|UUID", value_delimiter = ',')]
    pub lost: Vec<String>,
    /// What is left at these members counts though they may have lost some of it.
    #[arg(long, value_name = "NAME|UUID", value_delimiter = ',')]
    pub accept_in_doubt: Vec<String>,
    /// Does it. An attempt that was interrupted is finished by running it again.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct WriteArgs {
    /// In a keyspace of mode siblings: replaces what an earlier answer has shown, whose context this is (-o json).
    #[arg(long, value_name = "TOKEN", value_parser = parse_token)]
    context: Option<Context>,
    /// What an acknowledged write has reached; by default what the cluster says.
    #[arg(long)]
    durability: Option<DurabilityArg>,
}

impl From<WriteArgs> for WriteOptions {
    fn from(WriteArgs { context, durability }: WriteArgs) -> Self {
        let causal = context.map(|context| Causal { context: Some(context), operation: None });
        Self { durability: durability.map(Into::into), causal, ..Self::default() }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ScanArgs {
    /// Only keys that begin with this.
    #[arg(long, default_value = "")]
    pub prefix: OsString,
    /// At most so many keys.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Goes on after this key, which need not exist.
    #[arg(long, value_name = "KEY")]
    pub after: Option<OsString>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    /// On how many nodes each partition is kept; fixed for the cluster's life.
    /// By default 3.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub replication_factor: Option<u8>,
    /// A power of two from 16 to 4096; fixed for the cluster's life. By default 256.
    #[arg(long)]
    pub partitions: Option<u32>,
    /// A keyspace beside "default", with its mode, lww or siblings, for ever; may be repeated.
    #[arg(long = "create-keyspace", value_name = "NAME=MODE", value_parser = parse_keyspace)]
    pub keyspaces: Vec<(String, KeyspaceMode)>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// How many requests are under way at a time; with --rate at most.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// How long it measures. By default 10, or for as long as --operations takes.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: Option<u32>,
    /// Ends after so many requests, if --seconds have not passed before.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub operations: Option<u64>,
    /// The size of values; LOW-HIGH: each has one of its own between these.
    #[arg(long, default_value = "100", value_name = "BYTES|LOW-HIGH", value_parser = parse_sizes)]
    pub value_bytes: RangeInclusive<u32>,
    /// The share of gets among all requests, from 0 to 1; the rest are puts.
    #[arg(long, default_value_t = 0.5, value_parser = parse_share)]
    pub read_share: f64,
    /// How many different keys; they are written before the measurement if there are to be gets.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Leaves the keys as they are, such as an earlier run has written them.
    #[arg(long)]
    pub skip_preload: bool,
    /// How often which key is asked for.
    #[arg(long, default_value = "uniform")]
    pub distribution: Distribution,
    /// So many requests a second in all, sent when they are due, whether earlier ones were answered or not. Latencies
    /// then count from when a request was due. By default each client sends its next request once it has its answer.
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// What an acknowledged write has reached; by default what the cluster says.
    #[arg(long)]
    pub durability: Option<DurabilityArg>,
    /// Sends all requests of a thread to a node over one stream, rather than each as a call of its own.
    #[arg(long)]
    pub session: bool,
    /// Threads of this process, each with connections of its own; at most one a client.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// What the keys start with; a number of ten digits follows.
    #[arg(long, default_value = "bench/")]
    pub prefix: String,
    /// Deletes the keys that it has written, in the end.
    #[arg(long)]
    pub cleanup: bool,
    /// Says nothing while it runs.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distribution {
    /// Each key as often as any other.
    Uniform,
    /// The lower the key's number, the more often, as YCSB has it: key N in proportion to 1 / (N + 1)^0.99.
    Zipf,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number of requests per second, from 0.001 to 1000000".to_owned()),
    }
}

fn parse_sizes(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse::<u32>(), high.parse::<u32>()) {
        (Ok(low), Ok(high)) if low > high => Err(format!("of a range the lower end is first: {high}-{low}")),
        (Ok(low), Ok(high)) if high as usize <= VALUE_BYTES_MAX => Ok(low..=high),
        _ => Err(format!("a size is a number of bytes from 0 to {VALUE_BYTES_MAX}, or two such as 100-4000")),
    }
}

fn parse_keyspace(text: &str) -> Result<(String, KeyspaceMode), String> {
    match text.split_once('=') {
        Some((name, "lww")) if !name.is_empty() => Ok((name.to_owned(), KeyspaceMode::Lww)),
        Some((name, "siblings")) if !name.is_empty() => Ok((name.to_owned(), KeyspaceMode::Siblings)),
        _ => {
            Err("a keyspace is created by its name and mode, such as carts=siblings or sessions=lww"
                .to_owned())
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        duration if duration > DAY => Err("a duration is at most 24h".to_owned()),
        duration => Ok(duration),
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        ttl if ttl < Duration::from_millis(1) || ttl > TTL_MAX => {
            Err("a time to live is from 1ms to 3660d".to_owned())
        }
        ttl => Ok(ttl),
    }
}

const DAY: Duration = Duration::from_secs(86_400);
/// What nodes take: ten years.
const TTL_MAX: Duration = Duration::from_secs(3660 * 86_400);

/// A number with a unit, in one part: 500ms, 5s, 1.5m, 2h, 30d.
fn parse_time(text: &str) -> Result<Duration, String> {
    let problem = || "a duration is a number with a unit, such as 500ms, 5s, 1m, 1h or 30d".to_owned();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(problem)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(problem()),
    };
    let number: f64 = number.parse().map_err(|_| problem())?;
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())?;
    match duration.is_zero() {
        true => Err("a duration is longer than nothing".to_owned()),
        false => Ok(duration),
    }
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
    fn administration_is_at_the_port_after_that_for_clients() {
        for (endpoint, admin) in
            [("127.0.0.1:7410", "127.0.0.1:7411"), ("[::1]:7400", "[::1]:7401"), ("host", "host")]
        {
            assert_eq!(admin_of(endpoint), admin);
        }
        let globals = |arguments: &[&str]| {
            let command = [&["keystorectl", "status"], arguments].concat();
            Arguments::try_parse_from(command).unwrap().globals
        };
        assert_eq!(globals(&["--endpoint", "a:1", "--endpoint", "b:2"]).admin_endpoints(), ["a:2", "b:3"]);
        assert_eq!(globals(&["--endpoint", "a:1", "--admin-endpoint", "c:9"]).admin_endpoints(), ["c:9"]);
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

    #[test]
    fn a_time_to_live_may_be_days_and_is_never_nothing() {
        assert_eq!(parse_ttl("30d"), Ok(DAY * 30));
        assert_eq!(parse_ttl("1ms"), Ok(Duration::from_millis(1)));
        for text in ["0.5ms", "0s", "3661d", "1y", "1e300d"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_have_one_size_or_any_between_two() {
        for (text, sizes) in [("100", 100..=100), ("0", 0..=0), ("1-1048576", 1..=1_048_576), ("5-5", 5..=5)]
        {
            assert_eq!(parse_sizes(text), Ok(sizes), "{text}");
        }
        for text in ["", "-", "-1", "5-", "9-3", "1048577", "1-1048577", "1k", "1-2-3"] {
            assert!(parse_sizes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_number_that_a_schedule_can_be_made_of() {
        for (text, rate) in [("1000", 1000.0), ("0.5", 0.5), ("1e6", 1e6)] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for text in ["", "0", "-1", "1e7", "NaN", "inf", "fast"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_keyspace_is_created_with_its_mode() {
        assert_eq!(parse_keyspace("carts=siblings"), Ok(("carts".to_owned(), KeyspaceMode::Siblings)));
        assert_eq!(parse_keyspace("seen=lww"), Ok(("seen".to_owned(), KeyspaceMode::Lww)));
        for text in ["carts", "=lww", "carts=", "carts=strong"] {
            assert!(parse_keyspace(text).is_err(), "{text}");
        }
    }
}
