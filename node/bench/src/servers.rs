//! Three nodes of a store, or three members of an etcd, as processes on loopback with directories of their own.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

use crate::probe;
use crate::process::Server;
use crate::target::Target;

pub(crate) const NODES: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A node that reads a long log is at it for minutes.
const READY_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How often a node that starts is asked whether it is ready: how exact a start time is.
const READY_POLL: Duration = Duration::from_millis(5);

/// Where the programs are, and below which directory data goes.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) node: PathBuf,
    pub(crate) ctl: PathBuf,
    /// For the comparison alone.
    pub(crate) etcd: Option<PathBuf>,
    pub(crate) data: PathBuf,
}

/// What a store keeps its records in: any that the nodes know; they refuse to start with another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Engine(String);

impl From<String> for Engine {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl Engine {
    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

/// Processes that end with this.
pub(crate) struct Servers {
    // Before the directory that they write to.
    servers: Vec<Server>,
    /// Of a store's nodes, where they are administered.
    admins: Vec<SocketAddr>,
    starts: Option<Starts>,
    directory: TempDir,
}

/// How each node of a store is started.
struct Starts {
    programs: Programs,
    name: String,
    seeds: String,
    settings: Vec<(String, String)>,
}

impl Servers {
    /// A store of three nodes, initialised.
    pub(crate) fn store(programs: &Programs, name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let directory = new_directory(programs, name)?;
        let ports: [[u16; 4]; NODES] = [free_ports()?, free_ports()?, free_ports()?];
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let seeds: Vec<_> = ports.iter().map(|[_, _, gossip, _]| at(*gossip).to_string()).collect();
        let starts = Starts {
            programs: programs.clone(),
            name: name.to_owned(),
            seeds: seeds.join(","),
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        };
        let mut servers = Vec::new();
        for (number, ports) in ports.iter().enumerate() {
            servers.push(starts.node(number, *ports, &directory)?);
        }
        let admins = ports.map(|[_, peer, ..]| at(peer));
        init(programs, &mut servers, &admins)?;
        Ok(Self { servers, admins: admins.to_vec(), starts: Some(starts), directory })
    }

    /// One more node beside a store, which belongs to no cluster; returns where it is administered.
    pub(crate) fn add(&mut self) -> Result<SocketAddr> {
        let starts = self.starts.as_ref().context("only a store grows")?;
        let ports: [u16; 4] = free_ports()?;
        let [_, peer, ..] = ports;
        self.servers.push(starts.node(self.servers.len(), ports, &self.directory)?);
        Ok(SocketAddr::from(([127, 0, 0, 1], peer)))
    }

    /// Begins to move a store's data to its first so many nodes, and ends the move once it has.
    pub(crate) fn rearrangement(&mut self, nodes: usize, joins: Option<SocketAddr>) -> Result<Command> {
        let starts = self.starts.as_ref().context("only a store moves its data")?;
        let mut command = Command::new(&starts.programs.ctl);
        for admin in &self.admins {
            command.args(["--admin-endpoint", &admin.to_string()]);
        }
        let names: Vec<_> = (0..nodes).map(node_name).collect();
        command.args(["layout", "propose", "--wait", "--quiet", "--nodes", &names.join(",")]);
        if let Some(admin) = joins {
            command.args(["--join", &admin.to_string()]);
            self.admins.push(admin);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    /// `durable`: with its fsync, which it takes a flag to leave out.
    pub(crate) fn etcd(programs: &Programs, name: &str, durable: bool) -> Result<Self> {
        let program = programs.etcd.as_ref().context("--etcd says where etcd is")?;
        let directory = new_directory(programs, name)?;
        let ports: [[u16; 2]; NODES] = [free_ports()?, free_ports()?, free_ports()?];
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members: Vec<_> =
            ports.iter().enumerate().map(|(number, [_, peer])| format!("m{number}={}", url(*peer))).collect();
        let mut servers = Vec::new();
        for (number, [client, peer]) in ports.iter().enumerate() {
            let home = directory.path().join(format!("member-{number}"));
            fs::create_dir_all(&home)?;
            let mut command = Command::new(program);
            command.args(["--name", &format!("m{number}"), "--initial-cluster", &members.join(",")]);
            command.args(["--data-dir", &home.join("data").display().to_string()]);
            command.args(["--listen-client-urls", &url(*client), "--advertise-client-urls", &url(*client)]);
            command.args(["--listen-peer-urls", &url(*peer), "--initial-advertise-peer-urls", &url(*peer)]);
            command.args(["--log-level", "error", "--quota-backend-bytes", "8589934592"]);
            if !durable {
                command.arg("--unsafe-no-fsync");
            }
            let address = SocketAddr::from(([127, 0, 0, 1], *client));
            servers.push(Server::start(command, &home, (address, None))?);
        }
        Ok(Self { servers, admins: Vec::new(), starts: None, directory })
    }

    /// A connection to each, made when it is first used.
    pub(crate) fn channels(&self) -> Result<Vec<Channel>> {
        self.connections(self.servers.len())
    }

    /// So many, to the servers in turn.
    pub(crate) fn connections(&self, count: usize) -> Result<Vec<Channel>> {
        let servers = self.servers.iter().cycle().take(count);
        let channel =
            |server: &Server| Ok(Endpoint::from_shared(format!("http://{}", server.address))?.connect_lazy());
        servers.map(channel).collect()
    }

    pub(crate) fn each(&self) -> &[Server] {
        &self.servers
    }

    pub(crate) fn server(&mut self, number: usize) -> Result<&mut Server> {
        self.servers.get_mut(number).context("there is no such server")
    }

    /// Until each of the targets, one for each server, does a durable put.
    pub(crate) async fn wait(&mut self, targets: &[impl Target]) -> Result<()> {
        let begun = Instant::now();
        for target in targets {
            while let Err(failed) = target.put(Bytes::from("ready"), Bytes::from("?")).await {
                self.servers.iter_mut().try_for_each(Server::check_alive)?;
                if begun.elapsed() > START_TIMEOUT {
                    bail!("not ready after {START_TIMEOUT:?}: {failed}");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Starts a node that was stopped, and returns how long it took until it was ready.
    pub(crate) async fn start_again(&mut self, number: usize) -> Result<Duration> {
        let begun = Instant::now();
        let server = self.server(number)?;
        let http = server.http.context("only a node says when it is ready")?;
        server.start_again()?;
        while !probe::is_ready(http).await {
            server.check_alive()?;
            ensure!(begun.elapsed() < READY_TIMEOUT, "not ready after {READY_TIMEOUT:?}");
            sleep(READY_POLL).await;
        }
        Ok(begun.elapsed())
    }

    /// Until nothing is kept for a node that was away.
    pub(crate) async fn wait_for_hints(&self) -> Result<()> {
        let begun = Instant::now();
        for http in self.servers.iter().filter_map(|server| server.http) {
            while probe::metric(http, "keystore_hints_pending").await? > 0.0 {
                ensure!(begun.elapsed() < READY_TIMEOUT, "a node that was away still misses writes");
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Summed over all.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        self.servers.iter().map(Server::cpu_time).sum()
    }

    /// Memory of all together.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        self.servers.iter().map(Server::resident_bytes).sum()
    }

    /// What all together have written to disks since they started.
    pub(crate) fn written_bytes(&self) -> Result<u64> {
        self.servers.iter().map(Server::written_bytes).sum()
    }

    /// What all together have on disk.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        self.servers.iter().map(Server::disk_bytes).sum()
    }
}

fn node_name(number: usize) -> String {
    format!("bench-{number}")
}

impl Starts {
    fn node(&self, number: usize, ports: [u16; 4], directory: &TempDir) -> Result<Server> {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let [client, peer, gossip, http] = ports;
        let home = directory.path().join(format!("node-{number}"));
        fs::create_dir_all(&home)?;
        let mut command = Command::new(&self.programs.node);
        let mut set = |name: &str, value: &str| {
            command.arg(format!("--{name}={value}"));
        };
        set("data_dir", &home.join("data").display().to_string());
        set("node.name", &node_name(number));
        set("node.advertise_host", "127.0.0.1");
        set("gossip.cluster", &format!("bench/{}", self.name));
        set("gossip.seeds", &self.seeds);
        set("drain.grace_ms", "0");
        for (listener, port) in [("client", client), ("peer", peer), ("gossip", gossip), ("http", http)] {
            set(&format!("listen.{listener}"), &at(port).to_string());
        }
        self.settings.iter().for_each(|(name, value)| set(name, value));
        Server::start(command, &home, (at(client), Some(at(http))))
    }
}

/// A directory of its own, whatever else lies there; it goes with the servers.
fn new_directory(programs: &Programs, name: &str) -> Result<TempDir> {
    let data = &programs.data;
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    Ok(tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(data)?)
}

fn init(programs: &Programs, servers: &mut [Server], peers: &[SocketAddr]) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        servers.iter_mut().try_for_each(Server::check_alive)?;
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
