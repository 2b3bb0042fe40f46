//! Where other nodes may be found: seeds are looked up, and their own address left out.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

/// How long a start waits for another node's address: a headless Service publishes a pod some time after its start.
const WAIT_MAX: Duration = Duration::from_secs(10);
const WAIT_PAUSE: Duration = Duration::from_millis(250);
/// How often seeds are looked up while somebody is missing, and otherwise.
const PAUSE_SEARCHING: Duration = Duration::from_secs(1);
const PAUSE_COMPLETE: Duration = Duration::from_secs(30);

/// Returns when a seed's address is not ours, or when it is no use to wait. Without seeds there is nothing to
/// wait for.
pub(super) async fn wait_for_another(seeds: &[String], us: SocketAddr) {
    let give_up_at = Instant::now() + WAIT_MAX;
    while !seeds.is_empty() && look_up(seeds, us).await.is_empty() {
        if Instant::now() >= give_up_at {
            info!(waited_ms = WAIT_MAX.as_millis() as u64, "no other node's address has appeared");
            return;
        }
        sleep(WAIT_PAUSE).await;
    }
}

/// The present addresses of all seeds, ours apart.
pub(super) async fn look_up(seeds: &[String], us: SocketAddr) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for seed in seeds {
        match lookup_host(seed).await {
            Ok(addresses) => found.extend(addresses.filter(|address| *address != us)),
            Err(error) => debug!(%seed, %error, "a seed cannot be looked up"),
        }
    }
    found
}

pub(super) fn pause(misses_someone: bool) -> Duration {
    if misses_someone { PAUSE_SEARCHING } else { PAUSE_COMPLETE }
}
