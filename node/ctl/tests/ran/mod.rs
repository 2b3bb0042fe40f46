//! The command, run against fake nodes to its end.

use std::process::{Command, Output, Stdio};

use keystore_client::fake::FakeCluster;

pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }

    /// What is said in the end, behind whatever was said before.
    pub(crate) fn error(&self) -> serde_json::Value {
        serde_json::from_str(self.stderr.lines().last().unwrap()).unwrap()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The command, with no settings of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystorectl"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEYSTORE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

pub(crate) fn run_on(cluster: &FakeCluster, arguments: &[&str]) -> Ran {
    command_on(cluster).args(arguments).output().unwrap().into()
}

pub(crate) fn command_on(cluster: &FakeCluster) -> Command {
    let mut command = command();
    command
        .env("KEYSTORE_ENDPOINTS", cluster.endpoints().join(","))
        .env("KEYSTORE_ADMIN_ENDPOINTS", cluster.admin_endpoints().join(","));
    command
}
