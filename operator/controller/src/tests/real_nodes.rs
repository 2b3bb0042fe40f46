//! The real client of nodes against listeners that are no nodes, or not the one that is asked for: whatever answers, or
//! does not, it ends in time.

use std::net::SocketAddr;

use keystore_client::fake::FakeCluster;
use keystore_operator_core::observed::NodeMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Duration, Instant};
use crate::nodes::{GrpcNodes, NodeAddress, NodeClient, NodeError};

/// More than the client gives a node, twice: to connect and to answer.
const PATIENCE: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug)]
enum Listener {
    /// Accepts and says nothing, ever.
    Silent,
    /// Says something that is not HTTP/2.
    Babbling,
    /// Answers every request with an HTTP error.
    Web,
    /// Hangs up at once.
    Closing,
}

impl Listener {
    async fn meet(self, mut peer: TcpStream) {
        let said: &[u8] = match self {
            Self::Closing => return,
            Self::Silent => b"",
            Self::Babbling => &[0x5a; 4096],
            Self::Web => b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n",
        };
        let mut heard = [0; 1024];
        if peer.write_all(said).await.is_ok() {
            while peer.read(&mut heard).await.is_ok_and(|bytes| bytes > 0) {}
        }
    }
}

#[tokio::test]
async fn what_is_no_node_is_an_error_in_time() {
    for kind in [Listener::Silent, Listener::Babbling, Listener::Web, Listener::Closing] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nodes = GrpcNodes { port: listener.local_addr().unwrap().port() };
        let address = NodeAddress { pod: "demo-0".into(), ip: "127.0.0.1".into() };
        let serve = async {
            loop {
                let (peer, _) = listener.accept().await.unwrap();
                kind.meet(peer).await;
            }
        };
        let ask = async {
            let begun = Instant::now();
            let status = nodes.get_status(&address).await.unwrap_err();
            let layout = nodes.get_layout(&address).await.unwrap_err();
            (status, layout, begun.elapsed())
        };
        let (status, layout, took) = tokio::select! {
            answers = ask => answers,
            () = serve => unreachable!("it listens for ever"),
        };
        for error in [status, layout] {
            assert!(matches!(error, NodeError::Call { .. }), "{kind:?}: {error:?}");
        }
        assert!(took < PATIENCE, "{kind:?} took {took:?}");
    }
}

#[tokio::test]
async fn nobody_at_all_is_an_error_in_time() {
    let nodes = GrpcNodes { port: 1 };
    for ip in ["127.0.0.1", "::1", "not an address", ""] {
        let address = NodeAddress { pod: "demo-0".into(), ip: ip.into() };
        assert!(nodes.get_status(&address).await.is_err(), "{ip}");
    }
}

#[tokio::test]
async fn who_has_the_address_of_another_pod_is_a_stranger() {
    let cluster = FakeCluster::serving(1).unwrap();
    let at: SocketAddr = cluster.nodes[0].admin_endpoint().parse().unwrap();
    let nodes = GrpcNodes { port: at.port() };
    let ask =
        async |pod: &str| nodes.get_status(&NodeAddress { pod: pod.into(), ip: at.ip().to_string() }).await;
    assert_eq!(ask("fake-0").await.unwrap().mode, NodeMode::Serving);
    let error = ask("demo-0").await.unwrap_err();
    assert!(matches!(error, NodeError::Stranger { .. }), "{error:?}");
}
