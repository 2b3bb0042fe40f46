//! The machines under the store: taking one out of service, and, on `e2e/kubernetes` only, cutting networks and
//! killing processes.
//!
//! What was done to a machine is undone when a scenario is over, however that ends.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, EvictParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tracing::error;

use super::sandbox::Sandbox;

const PROCESS: &str = "keystore-node";

impl Sandbox {
    /// No new pod comes to this machine, until the scenario is over or [`Sandbox::uncordon`] is called.
    pub async fn cordon(&self, machine: &str) -> Result<()> {
        self.undo_later(set_unschedulable(self.client.clone(), machine.to_owned(), false));
        set_unschedulable(self.client.clone(), machine.to_owned(), true).await
    }

    pub async fn uncordon(&self, machine: &str) -> Result<()> {
        set_unschedulable(self.client.clone(), machine.to_owned(), false).await
    }

    /// Asks for a pod to go, as a drain does. False while its budget does not allow it.
    pub async fn evict(&self, pod: &str) -> Result<bool> {
        match self.api::<Pod>().evict(pod, &EvictParams::default()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{pod} cannot be evicted")),
        }
    }

    /// Where a pod runs: its address, and the machine's name.
    pub async fn place(&self, pod: &str) -> Result<Place> {
        let pod = self.api::<Pod>().get(pod).await?;
        let machine = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("no machine yet")?;
        let address =
            pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("no address yet")?;
        Ok(Place { pod: pod.name_any(), machine, address })
    }
}

async fn set_unschedulable(client: Client, machine: String, is_unschedulable: bool) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"unschedulable": is_unschedulable}}));
    Api::<Node>::all(client).patch(&machine, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Where a pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub pod: String,
    pub machine: String,
    pub address: String,
}

/// The machines of `e2e/kubernetes`, whose networks are namespaces of this one and whose processes are its own.
pub struct Host(());

impl Host {
    /// None where this process cannot reach into every machine's network.
    pub async fn find(sandbox: &Sandbox) -> Result<Option<Self>> {
        let machines = Api::<Node>::all(sandbox.client.clone()).list(&ListParams::default()).await?;
        let is_reached = |machine: &Node| enter(&machine.name_any(), &["true"]).is_ok();
        Ok(machines.iter().all(is_reached).then_some(Self(())))
    }

    /// Kills the store's process in each of these pods where it stands, all at one moment. Kubernetes itself would ask
    /// it to stop first.
    pub fn kill(&self, uids: &[String]) -> Result<()> {
        let mut processes = Vec::new();
        for uid in uids {
            let process = process_of(uid)?.with_context(|| format!("pod {uid} has no {PROCESS}"))?;
            processes.push(process.to_string());
        }
        let output = Command::new("kill").arg("-KILL").args(&processes).output().context("kill")?;
        ensure!(output.status.success(), "kill: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Takes a machine's network away, until the scenario is over: for everybody else it is as if it had died.
    pub fn lose(&self, sandbox: &Sandbox, machine: &str) -> Result<()> {
        let number = machine.strip_prefix("node-").with_context(|| format!("{machine} is not ours"))?;
        let link = format!("keystore-{number}");
        let again = link.clone();
        sandbox.undo_later(async move { set_link(&again, "up") });
        set_link(&link, "down")
    }

    /// Drops every packet from one pod to another, on the machine of the sender, until the cut is dropped.
    pub fn cut(&self, from: &Place, to: &Place) -> Result<Cut> {
        ensure!(from.machine != to.machine, "pods on one machine do not talk through its network");
        let rule = ["FORWARD", "-s", &from.address, "-d", &to.address, "-j", "DROP"];
        let cut = Cut { machine: from.machine.clone(), rule: rule.map(str::to_owned) };
        cut.iptables("-I")?;
        Ok(cut)
    }

    /// Both ways.
    pub fn cut_apart(&self, one: &Place, other: &Place) -> Result<[Cut; 2]> {
        Ok([self.cut(one, other)?, self.cut(other, one)?])
    }
}

fn set_link(link: &str, state: &str) -> Result<()> {
    let output = Command::new("ip").args(["link", "set", link, state]).output().context("ip")?;
    ensure!(output.status.success(), "{link}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Packets that are dropped as long as this lives.
pub struct Cut {
    machine: String,
    rule: [String; 7],
}

impl Cut {
    fn iptables(&self, action: &str) -> Result<()> {
        let mut command = vec!["iptables", "-w", action];
        command.extend(self.rule.iter().map(String::as_str));
        enter(&self.machine, &command)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = self.iptables("-D") {
            error!(error = format!("{error:#}"), "a network stays cut");
        }
    }
}

/// The store's process in a pod: a container's control group is named after its pod.
fn process_of(uid: &str) -> Result<Option<u32>> {
    for entry in fs::read_dir("/proc").context("/proc")? {
        let entry = entry.context("/proc")?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("comm").trim() == PROCESS && read("cgroup").contains(uid) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// Runs a command in a machine's network namespace, which has the name that `e2e/kubernetes` gives it.
fn enter(machine: &str, command: &[&str]) -> Result<()> {
    let namespace = format!("--net=/run/netns/keystore-{machine}");
    let output = Command::new("nsenter").arg(namespace).args(command).output().context("nsenter")?;
    if !output.status.success() {
        bail!("{} on {machine}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
