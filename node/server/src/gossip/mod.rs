//! Gossip: who seems alive, and where. Never who owns what.
//!
//! Each node tells its addresses, state, epoch, disk use and version under its UUID and generation; of a UUID the
//! highest generation counts. chitchat looks its seeds up only every 60 s, so that a cluster whose pods all came
//! back under new addresses would not find itself for a minute: seeds are looked up here instead, every second
//! while members are missing.

mod address;
mod seeds;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chitchat::transport::UdpTransport;
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState as Told,
    ProtocolVersion, spawn_chitchat,
};
use keystore_core::id::{Epoch, Generation, NodeId};
use keystore_proto::admin::node_state_name;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::about::{About, Gossiped, Known, SelfAddresses};

const KEY_NAME: &str = "name";
const KEY_CLIENT: &str = "client";
const KEY_PEER: &str = "peer";
const KEY_EPOCH: &str = "epoch";
const KEY_STATE: &str = "state";
const KEY_VERSION: &str = "version";
const KEY_DISK: &str = "disk_used_percent";

/// Longer silences than this say nothing about how often a node is heard.
const HEARTBEAT_MAX: Duration = Duration::from_secs(10);
/// Keys are never deleted; this is how long chitchat would remember one that was.
const DELETED_KEY_GRACE: Duration = Duration::from_secs(3_600);

#[derive(Debug, Error)]
#[error("gossip on {address} has failed: {reason}")]
pub struct GossipError {
    address: SocketAddr,
    reason: String,
}

/// Tells others of this node and publishes what they tell.
pub struct Gossip {
    pub about: About,
    pub gossiped: watch::Sender<Arc<Gossiped>>,
    pub ours: watch::Sender<SelfAddresses>,
}

impl Gossip {
    /// Finds its own address and some other node, then gossips until cancelled.
    pub async fn run(self, cancelled: CancellationToken) -> Result<(), GossipError> {
        let gossip = &self.about.config.gossip;
        let ip = tokio::select! {
            () = cancelled.cancelled() => return Ok(()),
            ip = address::find(&self.about.config) => ip,
        };
        let us = SocketAddr::new(ip, self.about.config.listen.gossip.port());
        tokio::select! {
            () = cancelled.cancelled() => return Ok(()),
            () = seeds::wait_for_another(&gossip.seeds, us) => {}
        }
        let failed = |reason: &dyn std::fmt::Display| GossipError {
            address: self.about.config.listen.gossip,
            reason: reason.to_string(),
        };
        let told = self.announce(ip);
        info!(address = %us, node = %self.about.node, "gossip starts");
        let handle = spawn_chitchat(self.chitchat_config(us), told, &UdpTransport)
            .await
            .map_err(|error| failed(&format!("{error:#}")))?;
        tokio::select! {
            () = cancelled.cancelled() => {}
            () = self.exchange(&handle, us) => {}
            ended = handle.termination_watcher() => {
                let reason = ended.err().map_or_else(|| "it ended".to_owned(), |error| format!("{error:#}"));
                return Err(failed(&reason));
            }
        }
        handle.shutdown().await.map_err(|error| failed(&format!("{error:#}")))
    }

    /// Publishes the addresses of this node and returns what is told to others from the start.
    fn announce(&self, ip: IpAddr) -> Vec<(String, String)> {
        let SelfAddresses { client, peer } = SelfAddresses::of(&self.about.config, Some(ip));
        self.ours.send_replace(SelfAddresses { client: client.clone(), peer: peer.clone() });
        [
            (KEY_NAME, self.about.config.node.name.clone()),
            (KEY_CLIENT, client),
            (KEY_PEER, peer),
            (KEY_VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }

    fn chitchat_config(&self, us: SocketAddr) -> ChitchatConfig {
        let gossip = &self.about.config.gossip;
        let interval = Duration::from_millis(gossip.interval_ms);
        ChitchatConfig {
            chitchat_id: ChitchatId::new(self.about.node.to_string(), self.about.generation.0, us),
            cluster_id: gossip.cluster.clone(),
            gossip_interval: interval,
            listen_addr: self.about.config.listen.gossip,
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: gossip.phi_threshold,
                max_interval: HEARTBEAT_MAX,
                initial_interval: interval * 2,
                dead_node_grace_period: Duration::from_millis(gossip.dead_grace_ms),
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: DELETED_KEY_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V0,
        }
    }

    /// Tells what has changed here and publishes what has changed elsewhere.
    async fn exchange(&self, handle: &ChitchatHandle, us: SocketAddr) {
        let mut ticks = interval(Duration::from_millis(self.about.config.gossip.interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_up_at = Instant::now();
        loop {
            ticks.tick().await;
            let gossiped = handle.with_chitchat(|chitchat| {
                self.tell(chitchat.self_node_state());
                self.read(chitchat)
            });
            let gossiped = gossiped.await;
            if Instant::now() >= look_up_at {
                for seed in seeds::look_up(&self.about.config.gossip.seeds, us).await {
                    // It fails only once gossip has ended, which is noticed elsewhere.
                    let _ = handle.gossip(seed);
                }
                look_up_at = Instant::now() + seeds::pause(self.misses_someone(&gossiped));
            }
            self.gossiped.send_if_modified(|shown| {
                let changed = **shown != gossiped;
                if changed {
                    *shown = Arc::new(gossiped);
                }
                changed
            });
        }
    }

    fn misses_someone(&self, gossiped: &Gossiped) -> bool {
        let is_alive = |node: &NodeId| gossiped.get(node).is_some_and(|known| known.alive);
        match &self.about.core.view().layout {
            Some(layout) => {
                layout.members.iter().any(|member| member.node != self.about.node && !is_alive(&member.node))
            }
            None => !gossiped.values().any(|known| known.alive),
        }
    }

    /// A value that is told already is not told again.
    fn tell(&self, told: &mut Told) {
        let view = self.about.core.view();
        told.set(KEY_STATE, node_state_name(view.state));
        told.set(KEY_DISK, self.about.disk.borrow().space.used_percent());
        if let Some(layout) = &view.layout {
            told.set(KEY_EPOCH, layout.epoch);
        }
    }

    fn read(&self, chitchat: &Chitchat) -> Gossiped {
        let live: Vec<_> = chitchat.live_nodes().collect();
        let mut gossiped = Gossiped::new();
        for (id, told) in chitchat.node_states() {
            let Ok(node) = id.node_id.parse::<NodeId>() else { continue };
            let known = Known {
                generation: Generation(id.generation_id),
                peer_address: told.get(KEY_PEER).and_then(|address| address.parse().ok()),
                client_address: told.get(KEY_CLIENT).unwrap_or_default().to_owned(),
                alive: live.contains(&id),
                epoch: told.get(KEY_EPOCH).and_then(|epoch| epoch.parse().ok()).map(Epoch),
            };
            let is_latest = gossiped.get(&node).is_none_or(|other| known.generation > other.generation);
            if node != self.about.node && is_latest {
                gossiped.insert(node, known);
            }
        }
        gossiped
    }
}
