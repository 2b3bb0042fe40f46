//! Structured logs on standard error: constant messages, data in fields.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Of each datagram that is not of gossip's form chitchat warns, and anybody can send many. A level for it in the
/// configuration comes later and counts.
const QUIET: &str = "chitchat=error";

/// To be called once. The filter was checked when the configuration was read.
pub fn start(log: &Log) {
    let level = &log.level;
    let filter =
        if level == "off" { EnvFilter::new(level) } else { EnvFilter::new(format!("{QUIET},{level}")) };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}
