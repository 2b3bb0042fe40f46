//! What is printed when a scenario has failed: the resource, its events and the pods' logs.
//!
//! Best effort: whatever cannot be had is named and the rest goes on.

use std::fmt::Display;

use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use keystore_crds::KeyStoreCluster;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};

use super::sandbox::Sandbox;

const LOG_LINES: i64 = 60;
const EVENTS_MAX: usize = 80;

impl Sandbox {
    pub async fn print_diagnosis(&self) {
        println!("--- namespace {}", self.namespace);
        self.print_resources().await;
        self.print_events().await;
        let pods = match self.api::<Pod>().list(&ListParams::default()).await {
            Ok(pods) => pods.items,
            Err(error) => return missing("pods", &error),
        };
        for pod in &pods {
            self.print_pod(pod).await;
        }
    }

    async fn print_resources(&self) {
        match self.api::<KeyStoreCluster>().list(&ListParams::default()).await {
            Ok(all) => {
                for mut ksc in all {
                    ksc.metadata.managed_fields = None;
                    let text = serde_yaml::to_string(&ksc).unwrap_or_else(|error| error.to_string());
                    println!("--- KeyStoreCluster {}\n{text}", ksc.name_any());
                }
            }
            Err(error) => missing("KeyStoreClusters", &error),
        }
        match self.api::<PersistentVolumeClaim>().list(&ListParams::default()).await {
            Ok(claims) => {
                for claim in claims {
                    let phase = claim.status.as_ref().and_then(|status| status.phase.clone());
                    println!("--- claim {} {phase:?}", claim.name_any());
                }
            }
            Err(error) => missing("claims", &error),
        }
    }

    async fn print_events(&self) {
        let mut events = match self.api::<Event>().list(&ListParams::default()).await {
            Ok(events) => events.items,
            Err(error) => return missing("events", &error),
        };
        events.sort_by_key(|event| event.metadata.creation_timestamp.clone());
        println!("--- events");
        for event in events.iter().rev().take(EVENTS_MAX).rev() {
            let object = &event.involved_object;
            let (kind, name) = (object.kind.as_deref().unwrap_or("?"), object.name.as_deref().unwrap_or("?"));
            let reason = event.reason.as_deref().unwrap_or("?");
            println!("{kind}/{name} {reason}: {}", event.message.as_deref().unwrap_or(""));
        }
    }

    async fn print_pod(&self, pod: &Pod) {
        let name = pod.name_any();
        let status = pod.status.as_ref();
        let machine = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no machine");
        println!("--- pod {name} on {machine}: {:?}", status.and_then(|status| status.phase.as_deref()));
        for container in status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten() {
            println!("    {} restarts {}: {:?}", container.name, container.restart_count, container.state);
        }
        for previous in [true, false] {
            let params = LogParams { previous, tail_lines: Some(LOG_LINES), ..LogParams::default() };
            match self.api::<Pod>().logs(&name, &params).await {
                Ok(log) => {
                    println!("--- log of {name}{}\n{log}", if previous { ", process before" } else { "" });
                }
                // Most pods have run once only.
                Err(_) if previous => {}
                Err(error) => missing(format_args!("log of {name}"), &error),
            }
        }
    }
}

fn missing(what: impl Display, error: &kube::Error) {
    println!("--- {what}: cannot be had: {error}");
}
