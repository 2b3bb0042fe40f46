//! The address under which other nodes reach this one.
//!
//! A configured address is taken at its word. A configured name may not lead anywhere yet, or still to where this
//! pod was before: only an address that this machine has is believed. Until it leads here, the address from which
//! other nodes would be reached is as good. While no name leads anywhere, as where the name service starts together with
//! all nodes, there is nothing to tell others: what they were told, they would dial until this process ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::config::Config;

const WARN_EVERY: Duration = Duration::from_secs(10);
const LOOK_UP_PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn find(config: &Config) -> IpAddr {
    let host = config.node.advertise_host.as_deref();
    if let Some(ip) = host.and_then(|host| host.parse().ok()) {
        return ip;
    }
    let listened = config.listen.gossip.ip();
    if host.is_none() && !listened.is_unspecified() {
        return listened;
    }
    let seeds = &config.gossip.seeds;
    if host.is_none() && seeds.is_empty() {
        warn!("no address of this node is known that others could use, only this machine can reach it");
        return Ipv4Addr::LOCALHOST.into();
    }
    let mut warn_at = Instant::now() + WARN_EVERY;
    loop {
        if let Some(ip) = look_up(host, seeds).await {
            return ip;
        }
        if !listened.is_unspecified() {
            return listened;
        }
        if Instant::now() >= warn_at {
            warn!(
                ?host,
                ?seeds,
                "none of these names leads anywhere: no other node hears of this one until one does"
            );
            warn_at += WARN_EVERY;
        }
        sleep(LOOK_UP_PAUSE).await;
    }
}

async fn look_up(host: Option<&str>, seeds: &[String]) -> Option<IpAddr> {
    let mut others = Vec::new();
    if let Some(host) = host {
        others.extend(lookup_host((host, 0)).await.into_iter().flatten());
        if let Some(ours) = others.iter().find(|address| is_ours(address.ip())) {
            return Some(ours.ip());
        }
    }
    for seed in seeds {
        others.extend(lookup_host(seed).await.into_iter().flatten());
    }
    others.into_iter().find_map(local_address_towards)
}

/// Only an address of this machine can be bound to.
fn is_ours(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Asks the routing table; no packet is sent.
fn local_address_towards(address: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    // A port is needed, and none is used.
    socket.connect((address.ip(), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_address_is_the_one_from_which_a_seed_is_reached() {
        let mut config = Config::default();
        config.gossip.seeds = vec!["127.0.0.1:7402".to_owned()];
        assert_eq!(find(&config).await, IpAddr::from([127, 0, 0, 1]));
    }

    #[tokio::test]
    async fn a_configured_address_is_taken_at_its_word() {
        let mut config = Config::default();
        config.node.advertise_host = Some("192.0.2.7".to_owned());
        assert_eq!(find(&config).await, IpAddr::from([192, 0, 2, 7]));
    }

    #[tokio::test]
    async fn a_name_that_leads_here_is_looked_up() {
        let mut config = Config::default();
        config.node.advertise_host = Some("localhost".to_owned());
        assert!(find(&config).await.is_loopback());
    }

    /// It looks again for as long as there is none: others would dial this machine in vain until the process ends.
    #[tokio::test(start_paused = true)]
    async fn names_that_lead_nowhere_are_waited_for() {
        let mut config = Config::default();
        // No name service is asked for a label of that length.
        let name = "x".repeat(64);
        config.gossip.seeds = vec![format!("{name}:7402")];
        config.node.advertise_host = Some(name);
        assert!(timeout(Duration::from_secs(60), find(&config)).await.is_err());
    }

    #[tokio::test]
    async fn where_it_listens_it_is_reached_though_its_name_leads_nowhere() {
        let mut config = Config::default();
        config.node.advertise_host = Some("x".repeat(64));
        config.listen.gossip = "192.0.2.7:7402".parse().unwrap();
        assert_eq!(find(&config).await, IpAddr::from([192, 0, 2, 7]));
    }

    #[tokio::test]
    async fn without_any_name_it_is_reached_on_this_machine() {
        assert!(find(&Config::default()).await.is_loopback());
    }

    #[test]
    fn an_address_of_another_machine_is_not_ours() {
        assert!(is_ours([127, 0, 0, 1].into()));
        assert!(!is_ours([192, 0, 2, 1].into()));
    }
}
