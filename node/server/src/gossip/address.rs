//! The address under which other nodes reach this one.
//!
//! A configured address is taken at its word. A configured name may not lead anywhere yet, or still to where this
//! pod was before: only an address that this machine has is believed, for a while. Otherwise it is the address from
//! which a seed is reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::config::Config;

const LOOK_UP_MAX: Duration = Duration::from_secs(10);
const LOOK_UP_PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn find(config: &Config) -> IpAddr {
    if let Some(host) = &config.node.advertise_host {
        if let Ok(ip) = host.parse() {
            return ip;
        }
        if let Some(ip) = look_up_own(host).await {
            return ip;
        }
    }
    let listened = config.listen.gossip.ip();
    if !listened.is_unspecified() {
        return listened;
    }
    for seed in &config.gossip.seeds {
        for address in lookup_host(seed).await.into_iter().flatten() {
            if let Some(ip) = local_address_towards(address) {
                return ip;
            }
        }
    }
    warn!("no address of this node is known that others could use, only this machine can reach it");
    Ipv4Addr::LOCALHOST.into()
}

async fn look_up_own(host: &str) -> Option<IpAddr> {
    let give_up_at = Instant::now() + LOOK_UP_MAX;
    loop {
        let addresses: Vec<_> = lookup_host((host, 0)).await.into_iter().flatten().collect();
        if let Some(ours) = addresses.iter().find(|address| is_ours(address.ip())) {
            return Some(ours.ip());
        }
        if Instant::now() >= give_up_at {
            info!(host, ?addresses, "the advertised name does not lead to this machine");
            return None;
        }
        sleep(LOOK_UP_PAUSE).await;
    }
}

/// Only an address of this machine can be bound to.
fn is_ours(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Asks the routing table; no packet is sent.
fn local_address_towards(address: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(address).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn an_address_of_another_machine_is_not_ours() {
        assert!(is_ours([127, 0, 0, 1].into()));
        assert!(!is_ours([192, 0, 2, 1].into()));
    }
}
