//! The operator's pod: restarting it, and what its metrics say.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt};

use super::ksc::is_ready;
use super::wait::{Look, until};

const SELECTOR: &str = "app.kubernetes.io/name=keystore-operator,app.kubernetes.io/component=operator";
const METRICS_PORT: u16 = 8080;
const RESTARTED_WITHIN: Duration = Duration::from_secs(120);

pub struct Operator {
    client: Client,
}

impl Operator {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The one pod, wherever it was installed.
    async fn pod(&self) -> Result<Pod> {
        let pods = Api::<Pod>::all(self.client.clone()).list(&ListParams::default().labels(SELECTOR)).await?;
        let mut living = pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        match (living.next(), living.next()) {
            (Some(pod), None) => Ok(pod),
            (None, _) => bail!("no pod has the labels {SELECTOR}: is the operator installed?"),
            (Some(_), Some(_)) => bail!("several pods have the labels {SELECTOR}"),
        }
    }

    /// Deletes the pod and waits until another one is ready.
    pub async fn restart(&self) -> Result<()> {
        let old = self.pod().await?;
        let namespace = old.namespace().context("a pod without a namespace")?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        pods.delete(&old.name_any(), &DeleteParams::default()).await?;
        until("the operator is back", RESTARTED_WITHIN, || async {
            let pod = self.pod().await?;
            let is_new = pod.metadata.uid != old.metadata.uid && is_ready(&pod);
            Ok(if is_new { Look::Done(()) } else { Look::NotYet("its pod is not ready".into()) })
        })
        .await
    }

    /// Its metrics, as text, through the API server.
    pub async fn metrics(&self) -> Result<String> {
        let pod = self.pod().await?;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{METRICS_PORT}/proxy/metrics");
        Ok(self.client.request_text(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// Waits until this process of the operator has reconciled a resource of that namespace to the end.
    pub async fn wait_reconciled(&self, namespace: &str) -> Result<()> {
        let label = format!("namespace=\"{namespace}\"");
        until("the operator has looked at the resource", RESTARTED_WITHIN, || async {
            let metrics = self.metrics().await?;
            let mut conditions =
                metrics.lines().filter(|line| line.starts_with("keystore_operator_cluster_condition"));
            let is_seen = conditions.any(|line| line.contains(&label));
            Ok(if is_seen { Look::Done(()) } else { Look::NotYet("no metric speaks of it".into()) })
        })
        .await
    }
}
