//! Metrics of pods, as they print them, through the API server.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};

use super::ksc::HTTP_PORT;
use super::sandbox::Sandbox;

const REQUESTS: &str = "keystore_requests_total";

/// The text that a pod shows to whoever collects it.
pub async fn metrics_of(client: &Client, pod: &Pod, port: u16) -> Result<String> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    Ok(client.request_text(http::Request::get(path).body(Vec::new())?).await?)
}

impl Sandbox {
    /// The value of a metric without labels on each node that runs, by pod.
    pub async fn node_metric(&self, name: &str) -> Result<BTreeMap<String, u64>> {
        let value = |(pod, metrics): (String, String)| {
            let value = value_of(&metrics, name).with_context(|| format!("{pod} has no metric {name}"))?;
            Ok((pod, value))
        };
        self.node_metrics().await?.into_iter().map(value).collect()
    }

    /// How many requests of clients each node that runs has done, by pod.
    pub async fn requests_done(&self) -> Result<BTreeMap<String, u64>> {
        let done = |(pod, metrics): (String, String)| {
            let ended = counters(&metrics, REQUESTS)?;
            let done = ended.iter().filter(|(labels, _)| labels.contains(r#"outcome="done""#));
            Ok((pod, done.map(|(_, count)| count).sum()))
        };
        self.node_metrics().await?.into_iter().map(done).collect()
    }

    /// What each node that runs shows, by pod.
    async fn node_metrics(&self) -> Result<BTreeMap<String, String>> {
        let mut metrics = BTreeMap::new();
        for pod in self.store_pods().await? {
            if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") {
                metrics.insert(pod.name_any(), metrics_of(&self.client, &pod, HTTP_PORT).await?);
            }
        }
        Ok(metrics)
    }
}

fn value_of(metrics: &str, name: &str) -> Option<u64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The values of one counter, by its labels as they are printed.
pub fn counters(metrics: &str, name: &str) -> Result<BTreeMap<String, u64>> {
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
    fn a_metric_is_found_by_its_whole_name() {
        let metrics = "# HELP hints_pending x\nhints_pending_max 7\nhints_pending 3\n";
        assert_eq!(value_of(metrics, "hints_pending"), Some(3));
        assert_eq!(value_of(metrics, "hints"), None);
    }

    #[test]
    fn counters_are_read_by_their_labels() {
        let metrics = "# TYPE a_total counter\na_total{kind=\"Pod\"} 3\na_total{kind=\"Lease\"} 9\nab_total{kind=\"x\"} 1\n";
        let counted = counters(metrics, "a_total").unwrap();
        assert_eq!(counted.get("kind=\"Pod\""), Some(&3));
        assert_eq!(counted.len(), 2);
        assert!(counters("a_total{kind=\"Pod\"} many", "a_total").is_err());
    }
}
