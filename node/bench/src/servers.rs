//! Three nodes of a store, or three members of an etcd, as processes on loopback with directories of their own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

use crate::proc;
use crate::target::Target;

const NODES: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the programs are, and below which directory data goes.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) node: PathBuf,
    pub(crate) ctl: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) data: PathBuf,
}

/// Processes that end with this.
pub(crate) struct Servers {
    processes: Vec<Child>,
    addresses: Vec<SocketAddr>,
    directory: TempDir,
}

impl Servers {
    /// A store of three nodes, initialised.
    pub(crate) fn store(programs: &Programs, name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let directory = new_directory(programs, name)?;
        let ports: [[u16; 4]; NODES] = [free_ports()?, free_ports()?, free_ports()?];
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let seeds: Vec<_> = ports.iter().map(|[_, _, gossip, _]| at(*gossip).to_string()).collect();
        let mut processes = Vec::new();
        for (number, [client, peer, gossip, http]) in ports.iter().enumerate() {
            let home = directory.path().join(format!("node-{number}"));
            fs::create_dir_all(&home)?;
            let mut command = Command::new(&programs.node);
            let mut set = |name: &str, value: &str| {
                command.arg(format!("--{name}={value}"));
            };
            set("data_dir", &home.join("data").display().to_string());
            set("node.name", &format!("bench-{number}"));
            set("node.advertise_host", "127.0.0.1");
            set("gossip.cluster", &format!("bench/{name}"));
            set("gossip.seeds", &seeds.join(","));
            set("drain.grace_ms", "0");
            for (listener, port) in [("client", client), ("peer", peer), ("gossip", gossip), ("http", http)] {
                set(&format!("listen.{listener}"), &at(*port).to_string());
            }
            settings.iter().for_each(|(name, value)| set(name, value));
            processes.push(spawn(&mut command, &home)?);
        }
        let addresses = ports.iter().map(|[client, ..]| at(*client)).collect();
        let servers = Self { processes, addresses, directory };
        init(programs, &ports.map(|[_, peer, ..]| at(peer)))?;
        Ok(servers)
    }

    /// `durable`: with its fsync, which it takes a flag to leave out.
    pub(crate) fn etcd(programs: &Programs, name: &str, durable: bool) -> Result<Self> {
        let directory = new_directory(programs, name)?;
        let ports: [[u16; 2]; NODES] = [free_ports()?, free_ports()?, free_ports()?];
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members: Vec<_> =
            ports.iter().enumerate().map(|(number, [_, peer])| format!("m{number}={}", url(*peer))).collect();
        let mut processes = Vec::new();
        for (number, [client, peer]) in ports.iter().enumerate() {
            let home = directory.path().join(format!("member-{number}"));
            fs::create_dir_all(&home)?;
            let mut command = Command::new(&programs.etcd);
            command.args(["--name", &format!("m{number}"), "--initial-cluster", &members.join(",")]);
            command.args(["--data-dir", &home.join("data").display().to_string()]);
            command.args(["--listen-client-urls", &url(*client), "--advertise-client-urls", &url(*client)]);
            command.args(["--listen-peer-urls", &url(*peer), "--initial-advertise-peer-urls", &url(*peer)]);
            command.args(["--log-level", "error", "--quota-backend-bytes", "8589934592"]);
            if !durable {
                command.arg("--unsafe-no-fsync");
            }
            processes.push(spawn(&mut command, &home)?);
        }
        let addresses = ports.iter().map(|[client, _]| SocketAddr::from(([127, 0, 0, 1], *client))).collect();
        Ok(Self { processes, addresses, directory })
    }

    /// A connection to each, made when it is first used.
    pub(crate) fn channels(&self) -> Result<Vec<Channel>> {
        let channel =
            |address: &SocketAddr| Ok(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy());
        self.addresses.iter().map(channel).collect()
    }

    /// Until each of the targets, one for each server, does a durable put.
    pub(crate) async fn wait(&self, targets: &[impl Target]) -> Result<()> {
        let begun = Instant::now();
        for target in targets {
            while let Err(status) = target.put(Bytes::from("ready"), Bytes::from("?")).await {
                if begun.elapsed() > START_TIMEOUT {
                    bail!(
                        "not ready after {START_TIMEOUT:?}, {status}: see {}",
                        self.directory.path().display()
                    );
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Summed over all.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        self.sum(proc::cpu_time)
    }

    /// Memory of all together.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        self.sum(proc::resident_bytes)
    }

    /// What all together have written to disks since they started.
    pub(crate) fn written_bytes(&self) -> Result<u64> {
        self.sum(proc::written_bytes)
    }

    fn sum<T: std::iter::Sum>(&self, of: impl Fn(u32) -> Result<T>) -> Result<T> {
        self.processes.iter().map(|process| of(process.id())).sum()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
            let _ended = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let begun = std::time::Instant::now();
        for process in &mut self.processes {
            while begun.elapsed() < STOP_TIMEOUT && matches!(process.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ended = process.kill();
            let _ended = process.wait();
        }
    }
}

/// A directory of its own, whatever else lies there; it goes with the servers.
fn new_directory(programs: &Programs, name: &str) -> Result<TempDir> {
    let data = &programs.data;
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    Ok(tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(data)?)
}

fn spawn(command: &mut Command, home: &Path) -> Result<Child> {
    let log = File::create(home.join("log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
}

fn init(programs: &Programs, peers: &[SocketAddr]) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let mut command = Command::new(&programs.ctl);
        for peer in peers {
            command.args(["--admin-endpoint", &peer.to_string()]);
        }
        let ended = command.arg("init").output().context("cannot start keystorectl")?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(begun.elapsed() < START_TIMEOUT, "init: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Held all at once, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind(("127.0.0.1", 0))?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
