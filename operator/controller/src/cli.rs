//! The command line, and the log that it asks for.

use std::io::IsTerminal;
use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Keeps KeyStore clusters as their KeyStoreCluster resources describe them.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// The image of storage nodes whose resource names none.
    #[arg(long, env = "KEYSTORE_NODE_IMAGE", default_value = concat!("keystore.dev/keystore-node:", env!("CARGO_PKG_VERSION")))]
    pub(crate) node_image: String,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub(crate) http_listen: SocketAddr,

    /// How log lines look. RUST_LOG chooses what is logged.
    #[arg(long, value_enum, default_value = "json")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Json,
    Text,
}

/// Reads the command line (a mistake there ends the process with status 2) and starts the log.
pub(crate) fn parse() -> Options {
    let options = Options::parse();
    // The libraries' own words about retries and reconciles would only repeat ours.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=error,kube_runtime=error"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match options.log_format {
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => log.init(),
    }
    options
}
