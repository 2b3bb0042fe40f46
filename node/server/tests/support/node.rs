//! One node process: its settings, its data directory, its end.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use keystore_core::id::{Actor, NodeId};
use keystore_core::layout::Member;
use keystore_proto::v1;
use keystore_proto::v1::admin_client::AdminClient;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{PATIENCE, Settings, free_ports, wait_until};

pub struct NodeProcess {
    settings: Settings,
    directory: TempDir,
    process: Option<Child>,
    client: Channel,
    admin: Channel,
}

/// What a process that has ended leaves behind.
pub struct Ended {
    pub status: ExitStatus,
    pub log: String,
}

fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(2))
        .connect_lazy()
}

impl NodeProcess {
    /// Not started yet. It has a directory and ports of its own.
    pub fn new(name: &str) -> Self {
        let mut node = Self {
            settings: Settings::new(),
            process: None,
            client: channel("127.0.0.1:1"),
            admin: channel("127.0.0.1:1"),
            directory: tempfile::tempdir().unwrap(),
        };
        let data = node.data_dir();
        node.set("data_dir", data.to_str().unwrap());
        node.set("node.name", name);
        node.set("gossip.interval_ms", "100");
        node.set("drain.grace_ms", "0");
        node.set("log.format", "text");
        node.relocate();
        node
    }

    /// Other ports from its next start on, as a pod gets another address.
    pub fn relocate(&mut self) {
        let [client, peer, gossip, http] = free_ports().map(|port| format!("127.0.0.1:{port}"));
        (self.client, self.admin) = (channel(&client), channel(&peer));
        for (listener, address) in [("client", client), ("peer", peer), ("gossip", gossip), ("http", http)] {
            self.set(&format!("listen.{listener}"), &address);
        }
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    pub fn setting(&self, name: &str) -> &str {
        &self.settings[name]
    }

    pub fn data_dir(&self) -> PathBuf {
        match self.settings.get("data_dir") {
            Some(path) => path.into(),
            None => self.directory.path().join("data"),
        }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn gossip_address(&self) -> String {
        self.setting("listen.gossip").to_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Everything that all its processes have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_keystore-node"))
            .args(self.settings.iter().map(|(name, value)| format!("--{name}={value}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let ended = self.wait_for_end();
        assert_eq!(ended.status.signal(), Some(9), "{}", ended.log);
    }

    pub fn wait_for_end(&mut self) -> Ended {
        let mut process = self.process.take().expect("it runs");
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > PATIENCE {
                process.kill().unwrap();
                panic!("the node did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ended { status, log: self.log() }
    }

    pub fn client(&self) -> KeyStoreClient<Channel> {
        KeyStoreClient::new(self.client.clone())
    }

    /// Whether the health service on the client port, or on the peer port, says that a service serves.
    pub async fn health(&self, on_peer_port: bool, service: &str) -> Option<bool> {
        let channel = if on_peer_port { &self.admin } else { &self.client };
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = HealthClient::new(channel.clone()).check(request).await.ok()?.into_inner();
        Some(response.status() == ServingStatus::Serving)
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.admin.clone())
    }

    pub async fn status(&self) -> Result<v1::GetStatusResponse, Status> {
        let response = self.admin().get_status(v1::GetStatusRequest {}).await?;
        Ok(response.into_inner())
    }

    pub async fn wait_for_status(&self) -> v1::GetStatusResponse {
        wait_until("a node answers GetStatus", || async { self.status().await.ok() }).await
    }

    /// What it is as a member of a layout.
    pub async fn member(&self) -> Member {
        let status = self.wait_for_status().await;
        Member {
            node: NodeId::from_slice(&status.node_id).unwrap(),
            actor: Actor(status.actor),
            name: status.name,
            zone: String::new(),
            weight: 1,
            is_lost: false,
        }
    }

    pub async fn init(&self, layout: v1::Layout) -> Result<v1::NodeState, Status> {
        let request = v1::InitRequest { layout: Some(layout) };
        let response = self.admin().init(request).await?;
        Ok(response.into_inner().state())
    }

    pub async fn wait_until_it_serves(&self) {
        wait_until("a node serves", || async { (self.http("/readyz").await?.0 == 200).then_some(()) }).await;
    }

    /// Status and body of a GET.
    pub async fn http(&self, path: &str) -> Option<(u16, String)> {
        self.http_with(path, "").await
    }

    /// The same with a further header line, ended by CRLF.
    pub async fn http_with(&self, path: &str, header: &str) -> Option<(u16, String)> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.setting("listen.http")).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await.ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    /// The value of a gauge or counter without labels, rounded down.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.http("/metrics").await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(value.parse::<f64>().ok()? as u64)
    }

    pub async fn put(&self, key: &str, value: &str) -> Result<v1::PutResponse, Status> {
        let request = v1::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..v1::PutRequest::default()
        };
        Ok(self.client().put(request).await?.into_inner())
    }

    /// The value, or `None` for a missing key.
    pub async fn get(&self, key: &str) -> Result<Option<String>, Status> {
        let request = v1::GetRequest { key: key.to_owned().into(), ..v1::GetRequest::default() };
        let values = self.client().get(request).await?.into_inner().values;
        Ok(values.first().map(|value| String::from_utf8(value.value.to_vec()).unwrap()))
    }

    pub async fn delete(&self, key: &str) -> Result<v1::DeleteResponse, Status> {
        let request = v1::DeleteRequest { key: key.to_owned().into(), ..v1::DeleteRequest::default() };
        Ok(self.client().delete(request).await?.into_inner())
    }

    /// Reads once a quorum can be reached again: links come back a moment after a process.
    pub async fn get_when_possible(&self, key: &str) -> Option<String> {
        wait_until("a read has its quorum", || async {
            match self.get(key).await {
                Ok(value) => Some(value),
                Err(status) => {
                    let transient = [Code::Unavailable, Code::Unknown, Code::DeadlineExceeded];
                    assert!(
                        transient.contains(&status.code()) || status.code() == Code::FailedPrecondition,
                        "{status}"
                    );
                    None
                }
            }
        })
        .await
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself, which is no concern here.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.setting("node.name"), self.log());
        }
    }
}
