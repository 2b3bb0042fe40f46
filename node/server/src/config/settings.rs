//! The table of all settings: path, unit, meaning. Flags, variables, file and help follow from it.

use super::Config;
use super::yaml::{Raw, show};

pub(super) struct Setting {
    /// Dotted: the flag without its dashes, the path in the file, and `KEYSTORE_` with `__` for dots.
    pub(super) path: &'static str,
    pub(super) unit: &'static str,
    pub(super) about: &'static str,
    pub(super) set: fn(&mut Config, Raw) -> Result<(), String>,
    show: fn(&Config) -> String,
}

macro_rules! setting {
    ($($field:ident).+, $unit:expr, $about:expr) => {
        Setting {
            path: concat_path!($($field).+),
            unit: $unit,
            about: $about,
            set: |config, raw| {
                config.$($field).+ = raw.read()?;
                Ok(())
            },
            show: |config| show(&config.$($field).+),
        }
    };
}

macro_rules! concat_path {
    ($first:ident $(. $rest:ident)*) => {
        concat!(stringify!($first) $(, ".", stringify!($rest))*)
    };
}

#[rustfmt::skip]
pub(super) const SETTINGS: &[Setting] = &[
    setting!(data_dir, "path", "where everything durable lives; one directory for one node"),
    setting!(node.name, "text", "a name for people; the pod's name on Kubernetes"),
    setting!(node.advertise_host, "host", "the address or name under which other nodes and clients reach this one; found out where none is given"),
    setting!(listen.client, "address", "gRPC for clients"),
    setting!(listen.peer, "address", "gRPC for other nodes and for administrators"),
    setting!(listen.gossip, "address", "UDP gossip"),
    setting!(listen.http, "address", "HTTP: /metrics, /livez, /readyz"),
    setting!(gossip.cluster, "text", "only nodes with the same word gossip with each other; <namespace>/<name> on Kubernetes"),
    setting!(gossip.seeds, "host:port,…", "where other nodes may be found; names are looked up again and again"),
    setting!(gossip.interval_ms, "ms", "time between rounds of gossip"),
    setting!(gossip.phi_threshold, "number", "how unlikely a silence must be before gossip calls a node dead; higher is slower and surer"),
    setting!(gossip.dead_grace_ms, "ms", "how long a dead node's addresses are remembered"),
    setting!(storage.engine, "sled|memory", "where records are kept: on disk, or in memory with snapshots on disk; a data directory stays with the one it was made with"),
    setting!(storage.durability, "synced|periodic", "what writes that name none are acknowledged after: on disk, or written and synced soon"),
    setting!(storage.cache_bytes, "bytes", "memory for what is read from disk, beside up to four times storage.checkpoint_bytes for what is still to be written there; the memory engine keeps everything and needs none"),
    setting!(storage.segment_bytes, "bytes", "size of a segment of the commit log"),
    setting!(storage.checkpoint_bytes, "bytes", "how much log is written between checkpoints: more takes longer to replay, less is more syncs; the memory engine waits for as much as its snapshot has, if that is more"),
    setting!(storage.sync_interval_ms, "ms", "how often periodic writes are synced"),
    setting!(storage.soft_limit_percent, "percent", "use of the disk from which a warning is logged"),
    setting!(storage.hard_limit_percent, "percent", "use of the disk from which client writes are refused"),
    setting!(storage.set_aside_keep_hours, "hours", "how long a data directory keeps what it held as a node that has departed, or was rolled back or cloned; it goes before that once the disk is as full as storage.soft_limit_percent says"),
    setting!(limits.requests, "count", "client requests under way here before more are refused"),
    setting!(limits.request_bytes, "bytes", "what client requests under way here hold before more are refused: a write its value, a read 16384 until its size is known"),
    setting!(limits.writes, "count", "replicated writes under way here before more are refused; at most half of what may wait for the log, 8192"),
    setting!(limits.connections, "count", "open connections on each listener"),
    setting!(limits.connection_streams, "count", "gRPC calls under way on one connection"),
    setting!(limits.frame_bytes, "bytes", "size from which no more is put into a frame to another node"),
    setting!(limits.link_queue_bytes, "bytes", "what may wait for one other node before the link to it is given up"),
    setting!(limits.hint_bytes, "bytes", "memory for hints, a few hundred bytes each: that another node may have missed a write; what exceeds it is left to repair"),
    setting!(limits.hint_age_ms, "ms", "how long a hint is kept for a node that is away; later it is left to repair"),
    setting!(limits.background_bytes_per_s, "bytes", "how much hints, moves and other work of the background may send, and take over, a second; less while clients are busy"),
    setting!(consistency.read, "one|quorum|all", "for reads that name none"),
    setting!(consistency.write, "one|quorum|all", "for writes that name none"),
    setting!(clock.skew_ms_max, "ms", "how far ahead of ours the clock behind a fresh write may be"),
    setting!(clock.offset_ms, "ms", "added to the wall clock; for tests of clocks that differ"),
    setting!(drain.grace_ms, "ms", "how long a node that is told to stop goes on serving, so that others notice first"),
    setting!(drain.timeout_ms, "ms", "how long it then waits for what is under way"),
    setting!(log.level, "filter", "error, warn, info, debug, trace, or a filter such as info,keystore_node=debug"),
    setting!(log.format, "json|text", "how log lines look"),
];

pub(super) fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

/// True for the first part of some path, such as `gossip`.
pub(super) fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.path.split_once('.').is_some_and(|(section, _)| section == name))
}

pub(super) fn help(defaults: &Config) -> String {
    let mut out = String::from(
        "A node of a KeyStore.\n\nUsage: keystore-node [--config FILE] [--SETTING VALUE]…\n\n\
         Settings come from the file (YAML), then from variables (storage.engine is KEYSTORE_STORAGE__ENGINE),\n\
         then from flags (--storage.engine VALUE). The last one counts.\n\nExit status: 0 drained, \
         2 bad configuration, 3 a data directory that must not be used, 1 anything else.\n\n\
         --config FILE\n    the file\n--help\n    this\n--version\n    the version\n",
    );
    for setting in SETTINGS {
        let default = (setting.show)(defaults);
        out.push_str(&format!(
            "--{} <{}>\n    {} [default: {default}]\n",
            setting.path, setting.unit, setting.about
        ));
    }
    out.truncate(out.trim_end().len());
    out
}
