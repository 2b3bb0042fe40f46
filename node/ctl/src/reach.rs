//! How the cluster is reached: at the endpoints that were given, or through port-forwards to its pods.

use keystore_client::{Client, Patience, Routing};

use crate::args::Globals;
use crate::failure::Failure;
use crate::forward::{self, Forwards};

const CLIENT_PORT: u16 = 7400;
const ADMIN_PORT: u16 = 7401;

/// Addresses, and what keeps them alive.
pub(crate) struct Addresses {
    pub addresses: Vec<String>,
    /// False if the addresses that nodes announce cannot be reached from here.
    pub announced_are_reachable: bool,
    _forwards: Option<Forwards>,
}

impl Addresses {
    fn given(addresses: &[String]) -> Self {
        Self { addresses: addresses.to_vec(), announced_are_reachable: true, _forwards: None }
    }
}

/// Where the KeyStore service is: all endpoints, or the pods that are ready (all of them if none is).
pub(crate) async fn client_addresses(globals: &Globals) -> Result<Addresses, Failure> {
    let Some(cluster) = cluster(globals)? else {
        return Ok(Addresses::given(&globals.endpoints));
    };
    let forwards = forward::open(globals.namespace.as_deref(), cluster, CLIENT_PORT).await?;
    let any_ready = forwards.pods.iter().any(|pod| pod.is_ready);
    let usable = forwards.pods.iter().filter(|pod| pod.is_ready || !any_ready);
    Ok(Addresses {
        addresses: usable.map(|pod| pod.address.clone()).collect(),
        announced_are_reachable: false,
        _forwards: Some(forwards),
    })
}

/// Where the Admin services are: all endpoints, or all pods.
pub(crate) async fn admin_addresses(globals: &Globals) -> Result<Addresses, Failure> {
    let Some(cluster) = cluster(globals)? else {
        return Ok(Addresses::given(&globals.admin_endpoints()));
    };
    let forwards = forward::open(globals.namespace.as_deref(), cluster, ADMIN_PORT).await?;
    Ok(Addresses {
        addresses: forwards.pods.iter().map(|pod| pod.address.clone()).collect(),
        announced_are_reachable: false,
        _forwards: Some(forwards),
    })
}

/// For one request of a person who waits: failures are told after each node was asked once.
pub(crate) async fn connect(globals: &Globals, addresses: &Addresses) -> Result<Client, Failure> {
    let direct = addresses.announced_are_reachable;
    connect_to(globals, (&addresses.addresses, direct), Patience::OneRound).await
}

/// `direct`: not only the addresses are to be used, but those that the cluster announces too.
pub(crate) async fn connect_to(
    globals: &Globals,
    (addresses, direct): (&[String], bool),
    patience: Patience,
) -> Result<Client, Failure> {
    let mode = if direct { Routing::Direct } else { Routing::Proxy };
    let builder =
        Client::builder().endpoints(addresses).mode(mode).patience(patience).timeout(globals.timeout());
    let builder = match globals.consistency {
        Some(consistency) => builder.consistency(consistency.into()),
        None => builder,
    };
    Ok(builder.connect().await?)
}

fn cluster(globals: &Globals) -> Result<Option<&str>, Failure> {
    match (&globals.cluster, &globals.namespace) {
        (Some(cluster), _) => Ok(Some(cluster)),
        (None, Some(_)) => Err(Failure::usage("a namespace needs a cluster in it: add -c CLUSTER")),
        (None, None) => Ok(None),
    }
}
