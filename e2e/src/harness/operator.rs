//! The operator's pods: which one leads, restarting it, and what its metrics say.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
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

    /// Its living pods, wherever it was installed.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::all(self.client.clone()).list(&ListParams::default().labels(SELECTOR)).await?;
        let living: Vec<_> =
            pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        ensure!(!living.is_empty(), "no pod has the labels {SELECTOR}: is the operator installed?");
        Ok(living)
    }

    /// The pod that leads: the only one, or the one that says so.
    pub async fn leader(&self) -> Result<Pod> {
        let pods = self.pods().await?;
        if let [only] = &pods[..] {
            return Ok(only.clone());
        }
        for pod in pods {
            if let Ok(metrics) = self.metrics_of(&pod).await
                && metrics.lines().any(|line| line == "keystore_operator_leader 1")
            {
                return Ok(pod);
            }
        }
        bail!("no pod of the operator leads")
    }

    /// Deletes the leader and waits until another pod leads and is ready. Says which one was deleted.
    pub async fn restart(&self, params: &DeleteParams) -> Result<Pod> {
        let old = self.leader().await?;
        let namespace = old.namespace().context("a pod without a namespace")?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        pods.delete(&old.name_any(), params).await?;
        until("another operator leads", RESTARTED_WITHIN, || async {
            let leader = self.leader().await?;
            let is_new = leader.metadata.uid != old.metadata.uid && is_ready(&leader);
            Ok(if is_new { Look::Done(()) } else { Look::NotYet("its pod is not ready".into()) })
        })
        .await?;
        Ok(old)
    }

    /// The leader's metrics, as text, through the API server.
    pub async fn metrics(&self) -> Result<String> {
        self.metrics_of(&self.leader().await?).await
    }

    async fn metrics_of(&self, pod: &Pod) -> Result<String> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{METRICS_PORT}/proxy/metrics");
        Ok(self.client.request_text(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// What the leader has written to Kubernetes, by kind, its Lease apart.
    pub async fn api_writes(&self) -> Result<BTreeMap<String, u64>> {
        let mut writes = counters(&self.metrics().await?, "keystore_operator_api_writes_total")?;
        writes.retain(|labels, _| !labels.contains("\"Lease\""));
        Ok(writes)
    }

    /// How many of the leader's reconciles have failed, by step.
    pub async fn reconcile_errors(&self) -> Result<BTreeMap<String, u64>> {
        counters(&self.metrics().await?, "keystore_operator_reconcile_errors_total")
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

/// The values of one counter, by its labels as they are printed.
fn counters(metrics: &str, name: &str) -> Result<BTreeMap<String, u64>> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    lines
        .map(|line| {
            let (labels, value) = line.rsplit_once("} ").with_context(|| format!("not a metric: {line}"))?;
            Ok((labels.to_owned(), value.parse().with_context(|| format!("not a count: {line}"))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_labels() {
        let metrics = "# TYPE a_total counter\na_total{kind=\"Pod\"} 3\na_total{kind=\"Lease\"} 9\nab_total{kind=\"x\"} 1\n";
        let counted = counters(metrics, "a_total").unwrap();
        assert_eq!(counted.get("kind=\"Pod\""), Some(&3));
        assert_eq!(counted.len(), 2);
        assert!(counters("a_total{kind=\"Pod\"} many", "a_total").is_err());
    }
}
