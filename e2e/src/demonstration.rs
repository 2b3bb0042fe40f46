//! `./dev.sh scale`: a store of its own goes from three nodes to five and back under load, and the terminal shows how its
//! partitions move. Load and judgement are those of the scenarios; what is drawn comes from the nodes themselves.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

use anyhow::{Result, anyhow};
use keystore_client::{AdminClient, Layout, NodeStatus};
use kube::Client;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::harness::forward::Forward;
use crate::harness::ksc::{ADMIN_PORT, REPLICAS, expect_settled, manifest, pod_names};
use crate::harness::sandbox::Sandbox;
use crate::load::{Allowance, Load, Settings};
use crate::store::ClientStore;

mod picture;

use picture::{Picture, Screen};

const WIDE: i32 = 5;
const MOVED_WITHIN: Duration = Duration::from_secs(300);
const FRAME: Duration = Duration::from_millis(200);
/// A node that says nothing for that long is drawn without its progress.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// How long it is looked at before the first and after the last change.
const AT_REST: Duration = Duration::from_secs(5);

/// True if no request failed and nothing was lost.
pub async fn run(client: Client, interrupted: CancellationToken) -> Result<bool> {
    let sandbox = Sandbox::create(client, "demonstration").await?;
    let result = tokio::select! {
        result = scale_under_load(&sandbox) => result,
        () = interrupted.cancelled() => Err(anyhow!("interrupted")),
    };
    if result.is_err() && !interrupted.is_cancelled() {
        sandbox.print_diagnosis().await;
    }
    sandbox.remove().await?;
    result
}

async fn scale_under_load(sandbox: &Sandbox) -> Result<bool> {
    println!("a store of {REPLICAS} nodes comes up in namespace {}", sandbox.namespace);
    sandbox.create_ready(&manifest()).await?;
    // Through nodes that stay.
    let connected = sandbox.connect_store_through(&pod_names()).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let steps = async {
        tokio::time::sleep(AT_REST).await;
        for replicas in [WIDE, REPLICAS] {
            sandbox.scale(replicas).await?;
            sandbox.wait_ksc("settled", MOVED_WITHIN, expect_settled).await?;
            tokio::time::sleep(AT_REST).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        result = steps => result?,
        never = draw(sandbox, &load) => match never {},
    }
    println!("every key is read back");
    let report = load.stop().await;
    let (summary, failed) = (report.summary(), report.failures_beyond(Allowance::NoFailure).len());
    let (requests, gap_ms) = (summary.operations, summary.longest_gap.as_millis());
    println!(
        "{requests} requests, {failed} failed, {} lost writes; longest gap {gap_ms} ms",
        report.lost_writes()
    );
    let verdict = report.judge(Allowance::NoFailure, 1);
    if let Err(findings) = &verdict {
        println!("{findings}");
    }
    Ok(verdict.is_ok())
}

async fn draw(sandbox: &Sandbox, load: &Load<ClientStore>) -> Infallible {
    let begun = Instant::now();
    let mut screen = Screen::new(stdout().is_terminal());
    let mut nodes = Nodes { sandbox, links: BTreeMap::new() };
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        frames.tick().await;
        // What cannot be seen just now is drawn at the next turn.
        let Ok(ksc) = sandbox.ksc().await else { continue };
        let status = ksc.status.unwrap_or_default();
        let pods = status.nodes.into_iter().map(|node| node.pod);
        let Some((layout, statuses)) = nodes.ask(pods).await else { continue };
        screen.show(&Picture {
            elapsed: begun.elapsed(),
            wanted: ksc.spec.replicas,
            operation: status
                .operation
                .map(|operation| format!("{}: {}", operation.phase, operation.message)),
            acknowledged: load.acknowledged(),
            failed: load.failed(),
            layout,
            statuses,
        });
    }
}

/// The nodes' Admin services, each through a forward to its pod.
struct Nodes<'a> {
    sandbox: &'a Sandbox,
    links: BTreeMap<String, (AdminClient, Forward)>,
}

impl Nodes<'_> {
    /// The newest layout that any node has, and what each that answers says of itself.
    async fn ask(&mut self, pods: impl Iterator<Item = String>) -> Option<(Layout, Vec<NodeStatus>)> {
        let mut newest: Option<Layout> = None;
        let mut statuses = Vec::new();
        for pod in pods {
            let Ok((layout, status)) = self.ask_one(&pod).await else {
                // The next pod of that name needs a connection of its own.
                self.links.remove(&pod);
                continue;
            };
            if layout.as_ref().map(|layout| layout.epoch) > newest.as_ref().map(|layout| layout.epoch) {
                newest = layout;
            }
            statuses.push(status);
        }
        newest.map(|layout| (layout, statuses))
    }

    async fn ask_one(&mut self, pod: &str) -> Result<(Option<Layout>, NodeStatus)> {
        if !self.links.contains_key(pod) {
            let forward = self.sandbox.forward(pod, ADMIN_PORT).await?;
            let admin = AdminClient::connect_within(forward.address.clone(), ANSWERED_WITHIN).await?;
            self.links.insert(pod.to_owned(), (admin, forward));
        }
        let (admin, _forward) = self.links.get(pod).expect("it was put there if it was missing");
        let layout = admin.get_layout().await?.map(|(layout, _)| layout);
        Ok((layout, admin.get_status().await?))
    }
}
