//! What the node is told: one typed value, read from a file, then the environment, then flags.
//!
//! A key that no setting has is refused, and all problems are reported at once. Each setting stands once, in the
//! table of `settings.rs`, with its unit and meaning; `--help` prints that table. YAML does not leave this module.

mod check;
mod settings;
mod sources;
mod yaml;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::storage::{COMMITS_WAITING_MAX, EngineKind};

/// Every setting of a node. Sizes and times bear their unit in the name.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub node: NodeConfig,
    pub listen: Listen,
    pub gossip: Gossip,
    pub storage: Storage,
    pub limits: Limits,
    pub consistency: Levels,
    pub clock: Clock,
    pub drain: Drain,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    pub name: String,
    pub advertise_host: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Listen {
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub gossip: SocketAddr,
    pub http: SocketAddr,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Gossip {
    pub cluster: String,
    pub seeds: Vec<String>,
    pub interval_ms: u64,
    pub phi_threshold: f64,
    pub dead_grace_ms: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    pub engine: Engine,
    pub durability: Durability,
    pub cache_bytes: u64,
    pub segment_bytes: u64,
    pub checkpoint_bytes: u64,
    pub sync_interval_ms: u64,
    pub soft_limit_percent: u8,
    pub hard_limit_percent: u8,
    pub set_aside_keep_hours: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Sled,
    Lsm,
    Memory,
}

impl From<Engine> for EngineKind {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Sled => Self::Sled,
            Engine::Lsm => Self::Lsm,
            Engine::Memory => Self::Memory,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    Synced,
    Periodic,
}

impl From<Durability> for keystore_core::quorum::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Synced => Self::Synced,
            Durability::Periodic => Self::Periodic,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub requests: usize,
    pub request_bytes: usize,
    pub writes: usize,
    pub connections: usize,
    pub connection_streams: u32,
    pub frame_bytes: usize,
    pub link_queue_bytes: usize,
    pub hint_bytes: usize,
    pub hint_age_ms: u64,
    pub background_bytes_per_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    pub read: Level,
    pub write: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    One,
    Quorum,
    All,
}

impl From<Level> for keystore_core::quorum::Consistency {
    fn from(level: Level) -> Self {
        match level {
            Level::One => Self::One,
            Level::Quorum => Self::Quorum,
            Level::All => Self::All,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    pub skew_ms_max: u64,
    pub offset_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    pub grace_ms: u64,
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}

const MIB: u64 = 1 << 20;

/// The largest `limits.frame_bytes`.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// With at most so many writes under way the log's queue is never full, where the core thread would have to wait
/// before it could refuse anything.
const WRITES_MAX: usize = COMMITS_WAITING_MAX / 2;

impl Default for Config {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            data_dir: "/var/lib/keystore".into(),
            node: NodeConfig { name: host_name(), advertise_host: None },
            listen: Listen {
                client: everywhere(7400),
                peer: everywhere(7401),
                gossip: everywhere(7402),
                http: everywhere(7403),
            },
            gossip: Gossip {
                cluster: "default/keystore".to_owned(),
                seeds: Vec::new(),
                interval_ms: 250,
                phi_threshold: 8.0,
                dead_grace_ms: 3_600_000,
            },
            storage: Storage {
                engine: Engine::Sled,
                durability: Durability::Synced,
                cache_bytes: 64 * MIB,
                segment_bytes: 16 * MIB,
                checkpoint_bytes: 64 * MIB,
                sync_interval_ms: 200,
                soft_limit_percent: 90,
                hard_limit_percent: 98,
                set_aside_keep_hours: 7 * 24,
            },
            limits: Limits::default(),
            consistency: Levels { read: Level::Quorum, write: Level::Quorum },
            clock: Clock { skew_ms_max: 500, offset_ms: 0 },
            drain: Drain { grace_ms: 3_000, timeout_ms: 20_000 },
            log: Log { level: "info".to_owned(), format: LogFormat::Json },
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 8_192,
            request_bytes: 128 << 20,
            writes: WRITES_MAX,
            connections: 4_096,
            connection_streams: 256,
            frame_bytes: 256 << 10,
            link_queue_bytes: 256 << 20,
            hint_bytes: 32 << 20,
            hint_age_ms: 3 * 3_600_000,
            background_bytes_per_s: 8 << 20,
        }
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    Run(Box<Config>),
    /// Print this and exit.
    Print(String),
}

/// Everything that is wrong with the configuration, one sentence each. Nothing was started.
#[derive(Debug, PartialEq, Eq, Error)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s):", self.problems.len())?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// Reads all sources; later ones win. `arguments` are those after the program's name.
pub fn load(
    arguments: impl Iterator<Item = OsString>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Command, ConfigError> {
    let mut problems = Vec::new();
    let flags = sources::read_flags(arguments, &mut problems);
    if flags.help {
        return Ok(Command::Print(settings::help(&Config::default())));
    }
    if flags.version {
        return Ok(Command::Print(format!("keystore-node {}", env!("CARGO_PKG_VERSION"))));
    }
    let mut given = Vec::new();
    if let Some(path) = &flags.config {
        sources::read_file(path, &mut given, &mut problems);
    }
    sources::read_environment(environment, &mut given);
    given.extend(flags.given);
    let mut config = Config::default();
    for setting in given {
        setting.apply(&mut config, &mut problems);
    }
    check::check(&config, &mut problems);
    if problems.is_empty() { Ok(Command::Run(Box::new(config))) } else { Err(ConfigError { problems }) }
}

/// The settings of a file's text alone.
pub fn from_text(text: &str) -> Result<Config, ConfigError> {
    let (mut given, mut problems, mut config) = (Vec::new(), Vec::new(), Config::default());
    sources::read_text("the text", text, &mut given, &mut problems);
    for setting in given {
        setting.apply(&mut config, &mut problems);
    }
    check::check(&config, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
}

/// In a pod this is the pod's name.
fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
