//! Port-forwards to a cluster's pods: loopback listeners whose connections Kubernetes carries to a pod's port.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::failure::{Exit, Failure};

/// A pod and the loopback address under which one of its ports is reached.
pub(crate) struct Forwarded {
    pub address: String,
    pub is_ready: bool,
}

/// Forwards to one port of each pod of a cluster, ready pods first. Dropping them ends them.
pub(crate) struct Forwards {
    pub pods: Vec<Forwarded>,
    _tasks: JoinSet<()>,
}

/// Opens a forward for each pod; the way to the pod itself is opened with the first connection.
pub(crate) async fn open(namespace: Option<&str>, cluster: &str, port: u16) -> Result<Forwards, Failure> {
    let api = pods_api(namespace).await?;
    let mut tasks = JoinSet::new();
    let mut pods = Vec::new();
    for pod in list_pods(&api, cluster).await? {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(|error| Failure::local("cannot listen on loopback", &error))?;
        let address = listener.local_addr().map_err(|error| Failure::local("no local address", &error))?;
        pods.push(Forwarded { address: address.to_string(), is_ready: is_ready(&pod) });
        tasks.spawn(serve(listener, api.clone(), pod.name_any(), port));
    }
    Ok(Forwards { pods, _tasks: tasks })
}

async fn pods_api(namespace: Option<&str>) -> Result<Api<Pod>, Failure> {
    let unreachable = |problem: String| {
        Failure::new(Exit::CannotConnect, "CANNOT_CONNECT", format!("cannot reach Kubernetes: {problem}"))
    };
    let config = kube::Config::infer().await.map_err(|error| unreachable(error.to_string()))?;
    let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
    let client = kube::Client::try_from(config).map_err(|error| unreachable(error.to_string()))?;
    Ok(Api::namespaced(client, &namespace))
}

async fn list_pods(api: &Api<Pod>, cluster: &str) -> Result<Vec<Pod>, Failure> {
    let labels = format!("keystore.dev/cluster={cluster},app.kubernetes.io/component=node");
    let found = api.list(&ListParams::default().labels(&labels)).await.map_err(|error| {
        let problem = format!("cannot list the pods of cluster \"{cluster}\": {error}");
        Failure::new(Exit::CannotConnect, "CANNOT_CONNECT", problem)
    })?;
    let mut pods = found.items;
    pods.retain(|pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running")));
    if pods.is_empty() {
        let problem = format!(
            "cluster \"{cluster}\" has no running pods in namespace \"{}\"",
            api.namespace().unwrap_or_default()
        );
        return Err(Failure::new(Exit::CannotConnect, "CANNOT_CONNECT", problem));
    }
    pods.sort_by_key(|pod| (!is_ready(pod), pod.name_any()));
    Ok(pods)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn serve(listener: TcpListener, api: Api<Pod>, pod: String, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(carry(stream, api.clone(), pod.clone(), port));
                }
                Err(error) => {
                    tracing::warn!(%error, "port-forward stopped");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until either side ends it. A client sees a failure as a closed connection.
async fn carry(mut local: TcpStream, api: Api<Pod>, pod: String, port: u16) {
    // Small frames, each waited for.
    let _ = local.set_nodelay(true);
    let mut forwarder = match api.portforward(&pod, &[port]).await {
        Ok(forwarder) => forwarder,
        Err(error) => {
            tracing::warn!(pod, port, %error, "port-forward not opened");
            return;
        }
    };
    let Some(mut remote) = forwarder.take_stream(port) else { return };
    if let Err(error) = copy_bidirectional(&mut local, &mut remote).await {
        tracing::debug!(pod, port, %error, "port-forward ended");
    }
    drop(remote);
    forwarder.abort();
}
