//! What a type cannot say about a setting: ranges, and settings that have to fit each other.

use std::collections::BTreeSet;

use keystore_core::record::VALUE_BYTES_MAX;

use crate::grpc::FRAME_DECODED_BYTES_MAX;

use super::{Config, FRAME_BYTES_MAX, Limits, Listen, Storage, WRITES_MAX};

pub(super) fn check(config: &Config, problems: &mut Vec<String>) {
    let mut demand = |holds: bool, problem: &str| {
        if !holds {
            problems.push(problem.to_owned());
        }
    };
    let Storage {
        cache_bytes,
        segment_bytes,
        checkpoint_bytes,
        sync_interval_ms,
        soft_limit_percent,
        hard_limit_percent,
        ..
    } = config.storage;
    demand(!config.data_dir.as_os_str().is_empty(), "data_dir: it is empty");
    demand(!config.node.name.is_empty(), "node.name: it is empty");
    demand(!config.gossip.cluster.is_empty(), "gossip.cluster: it is empty");
    demand(
        (50..=10_000).contains(&config.gossip.interval_ms),
        "gossip.interval_ms: it has to be from 50 to 10000",
    );
    demand(
        config.gossip.phi_threshold >= 1.0 && config.gossip.phi_threshold.is_finite(),
        "gossip.phi_threshold: it has to be at least 1",
    );
    demand(config.gossip.dead_grace_ms >= 10_000, "gossip.dead_grace_ms: it has to be at least 10000");
    demand(cache_bytes >= 1 << 20, "storage.cache_bytes: it has to be at least 1048576");
    demand(
        (4 << 20..=1 << 30).contains(&segment_bytes),
        "storage.segment_bytes: it has to be from 4194304 to 1073741824",
    );
    demand(
        (1 << 20..=16 << 30).contains(&checkpoint_bytes),
        "storage.checkpoint_bytes: it has to be from 1048576 to 17179869184",
    );
    demand(
        (1..=60_000).contains(&sync_interval_ms),
        "storage.sync_interval_ms: it has to be from 1 to 60000",
    );
    demand((1..=100).contains(&hard_limit_percent), "storage.hard_limit_percent: it has to be from 1 to 100");
    demand(
        (1..=hard_limit_percent).contains(&soft_limit_percent),
        "storage.soft_limit_percent: it has to be from 1 to storage.hard_limit_percent",
    );
    demand(
        config.log.level.parse::<tracing_subscriber::filter::EnvFilter>().is_ok(),
        "log.level: it is no filter",
    );
    check_limits(&config.limits, &mut demand);
    check_listen(&config.listen, problems);
    for seed in &config.gossip.seeds {
        if !is_host_and_port(seed) {
            problems.push(format!("gossip.seeds: \"{seed}\" is not host:port"));
        }
    }
}

fn check_limits(limits: &Limits, demand: &mut impl FnMut(bool, &str)) {
    let Limits {
        requests,
        request_bytes,
        writes,
        connections,
        connection_streams,
        frame_bytes,
        link_queue_bytes,
        hint_bytes,
        hint_age_ms,
        background_bytes_per_s,
    } = *limits;
    demand(requests >= 1, "limits.requests: it has to be at least 1");
    demand(
        (4 * VALUE_BYTES_MAX..=1 << 30).contains(&request_bytes),
        "limits.request_bytes: it has to be from 4194304 to 1073741824",
    );
    demand(
        link_queue_bytes >= request_bytes,
        "limits.link_queue_bytes: it has to be at least limits.request_bytes, or a large write would cost a link",
    );
    demand(
        link_queue_bytes >= 2 * FRAME_DECODED_BYTES_MAX,
        &format!(
            "limits.link_queue_bytes: it has to be at least {}, twice the largest frame",
            2 * FRAME_DECODED_BYTES_MAX
        ),
    );
    demand(
        (1..=WRITES_MAX).contains(&writes),
        &format!("limits.writes: it has to be from 1 to {WRITES_MAX}, half of what may wait for the log"),
    );
    demand(connections >= 1, "limits.connections: it has to be at least 1");
    demand(connection_streams >= 1, "limits.connection_streams: it has to be at least 1");
    demand(
        (4096..=FRAME_BYTES_MAX).contains(&frame_bytes),
        "limits.frame_bytes: it has to be from 4096 to 4194304",
    );
    demand(hint_bytes <= 4 << 30, "limits.hint_bytes: it has to be at most 4294967296");
    demand(hint_age_ms >= 1_000, "limits.hint_age_ms: it has to be at least 1000");
    demand(
        (64 << 10..=64 << 30).contains(&background_bytes_per_s),
        "limits.background_bytes_per_s: it has to be from 65536 to 68719476736",
    );
}

/// Gossip is UDP and may share a number with the others; port 0 means any.
fn check_listen(listen: &Listen, problems: &mut Vec<String>) {
    let Listen { client, peer, http, .. } = listen;
    let mut seen = BTreeSet::new();
    for (name, address) in [("client", client), ("peer", peer), ("http", http)] {
        if address.port() != 0 && !seen.insert(address) {
            problems.push(format!("listen.{name}: {address} is taken by another listener"));
        }
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}
