//! The pod that a node runs in.
//!
//! Restricted pod security, no shell, nothing writable but the volume. Probes look at this process alone: the
//! health of the cluster is in no pod's probe, or one sick node would have the kubelet restart the others.
//! There is no preStop hook: the binary drains by itself on SIGTERM, within the grace period.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keystore_crds::{ImagePullPolicy, PodSettings};

use super::{CONFIG_DIR, CONFIG_FILE, DATA_DIR, labels};
use crate::names::{CLIENT_PORT, GOSSIP_PORT, HTTP_PORT, PEER_PORT};
use crate::validate::ValidCluster;

pub(super) const DATA_VOLUME: &str = "data";
const CONFIG_VOLUME: &str = "config";
/// The name of the container in which the node runs.
pub const NODE_CONTAINER: &str = "keystore-node";
/// The user that the image's files belong to; any non-root one would do.
const USER: i64 = 65532;
const HOSTNAME_KEY: &str = "kubernetes.io/hostname";

/// `config_map` is the name of the configuration that the pod mounts.
pub fn build_pod_template(cluster: &ValidCluster, config_map: &str) -> PodTemplateSpec {
    let template = cluster.spec.pod_template.clone().unwrap_or_default();
    let added = template.metadata.unwrap_or_default();
    let mut pod_labels = added.labels;
    pod_labels.extend(labels(cluster));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels),
            annotations: some_map(added.annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(build_pod_spec(cluster, config_map, template.spec.unwrap_or_default())),
    }
}

/// The image of the node's container, in a template of ours.
pub fn node_image(template: &PodTemplateSpec) -> Option<String> {
    let containers = &template.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == NODE_CONTAINER)?.image.clone()
}

fn build_pod_spec(cluster: &ValidCluster, config_map: &str, settings: PodSettings) -> PodSpec {
    let PodSettings {
        affinity,
        tolerations,
        node_selector,
        topology_spread_constraints,
        priority_class_name,
        image_pull_secrets,
        env,
        termination_grace_period_seconds: _, // validated: cluster.grace_seconds
    } = settings;
    let spread = if topology_spread_constraints.is_empty() {
        default_spread(cluster)
    } else {
        topology_spread_constraints
    };
    PodSpec {
        affinity,
        tolerations: some_list(tolerations),
        node_selector: some_map(node_selector),
        topology_spread_constraints: Some(spread),
        priority_class_name,
        image_pull_secrets: some_list(image_pull_secrets),
        termination_grace_period_seconds: Some(cluster.grace_seconds),
        service_account_name: Some(cluster.names.cluster.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod_security()),
        containers: vec![build_container(cluster, env)],
        volumes: Some(vec![Volume {
            name: CONFIG_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config_map.to_owned(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

/// Soft, so that a machine or a zone that is gone does not keep pods from running.
fn default_spread(cluster: &ValidCluster) -> Vec<TopologySpreadConstraint> {
    let over = |key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(cluster.names.selector()),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    };
    let zone_key = cluster.spec.zone_topology_key.as_str();
    // Two constraints with one key would be refused.
    let keys = if zone_key == HOSTNAME_KEY { vec![HOSTNAME_KEY] } else { vec![zone_key, HOSTNAME_KEY] };
    keys.into_iter().map(over).collect()
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // Walking a large volume at each start would take minutes; the root's owner says whether it was done.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn build_container(cluster: &ValidCluster, env: Vec<EnvVar>) -> Container {
    Container {
        name: NODE_CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some(pull_policy(cluster.spec.image_pull_policy).to_owned()),
        args: Some(vec!["--config".to_owned(), format!("{CONFIG_DIR}/{CONFIG_FILE}")]),
        env: Some(identity_env(cluster).into_iter().chain(env).collect()),
        ports: Some(vec![
            container_port("client", CLIENT_PORT, "TCP"),
            container_port("peer", PEER_PORT, "TCP"),
            container_port("gossip", GOSSIP_PORT, "UDP"),
            container_port("http", HTTP_PORT, "TCP"),
        ]),
        resources: build_resources(cluster),
        // Why a node did not start is in the last lines of its log: from there the kubelet takes it to the pod's status.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        // Alive while it recovers: a long log is no reason to be killed, so start-up gets ten minutes.
        startup_probe: Some(probe("/livez", 2, 300)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            VolumeMount {
                name: DATA_VOLUME.to_owned(),
                mount_path: DATA_DIR.to_owned(),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: CONFIG_VOLUME.to_owned(),
                mount_path: CONFIG_DIR.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

/// What differs between pods that share one configuration file: the node is named after its pod.
fn identity_env(cluster: &ValidCluster) -> Vec<EnvVar> {
    let host = format!("$(KEYSTORE_NODE__NAME).{}", cluster.names.seeds_host());
    vec![
        EnvVar {
            name: "KEYSTORE_NODE__NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    // Written out, as the API server would add it.
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.name".to_owned(),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        },
        EnvVar { name: "KEYSTORE_NODE__ADVERTISE_HOST".to_owned(), value: Some(host), value_from: None },
    ]
}

fn build_resources(cluster: &ValidCluster) -> Option<ResourceRequirements> {
    let resources = cluster.spec.resources.clone()?;
    let quantities = |map: BTreeMap<String, Quantity>| some_map(map);
    Some(ResourceRequirements {
        requests: quantities(resources.requests),
        limits: quantities(resources.limits),
        claims: None,
    })
}

fn container_port(name: &str, number: u16, protocol: &str) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some(protocol.to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn pull_policy(policy: ImagePullPolicy) -> &'static str {
    match policy {
        ImagePullPolicy::Always => "Always",
        ImagePullPolicy::IfNotPresent => "IfNotPresent",
        ImagePullPolicy::Never => "Never",
    }
}

/// In server-side apply an empty list is a claim to own it; an absent one is not.
fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn some_map<V>(map: BTreeMap<String, V>) -> Option<BTreeMap<String, V>> {
    (!map.is_empty()).then_some(map)
}
