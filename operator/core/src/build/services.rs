//! The small children: Services, disruption budget, service account.

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::child_metadata;
use crate::names::{CLIENT_PORT, GOSSIP_PORT, HTTP_PORT, PEER_PORT};
use crate::validate::ValidCluster;

/// Nodes never talk to the API server: no token is mounted.
pub fn build_service_account(cluster: &ValidCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: child_metadata(cluster, cluster.names.cluster.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// For the nodes among themselves: nodes have to find each other before any of them is ready.
pub fn build_headless_service(cluster: &ValidCluster) -> Service {
    Service {
        metadata: child_metadata(cluster, cluster.names.headless_service()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(cluster.names.selector()),
            ports: Some(vec![
                port("client", CLIENT_PORT, "TCP"),
                port("peer", PEER_PORT, "TCP"),
                port("gossip", GOSSIP_PORT, "UDP"),
                port("http", HTTP_PORT, "TCP"),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// For clients: only the client port, only nodes that serve.
pub fn build_client_service(cluster: &ValidCluster) -> Service {
    let client = ServicePort {
        app_protocol: Some("kubernetes.io/h2c".to_owned()),
        ..port("client", CLIENT_PORT, "TCP")
    };
    Service {
        metadata: child_metadata(cluster, cluster.names.cluster.clone()),
        spec: Some(ServiceSpec {
            selector: Some(cluster.names.selector()),
            ports: Some(vec![client]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(name: &str, number: u16, protocol: &str) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some(protocol.to_owned()),
        ..ServicePort::default()
    }
}

/// One pod at a time may be evicted; one that does not serve anyway may always be, or a drain would never end.
pub fn build_budget(cluster: &ValidCluster) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: child_metadata(cluster, cluster.names.cluster.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            selector: Some(LabelSelector {
                match_labels: Some(cluster.names.selector()),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
