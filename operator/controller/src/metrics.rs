//! What the operator counts.
//!
//! Labels come from closed sets, apart from a cluster's namespace and name, whose series go with the cluster.

use std::collections::BTreeSet;
use std::fmt::Error;
use std::time::Duration;

use keystore_crds::{ConditionType, KeyStoreClusterStatus};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The steps of a reconcile, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Observe,
    Plan,
    Apply,
    Status,
}

impl Step {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Plan => "plan",
            Self::Apply => "apply",
            Self::Status => "status",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    namespace: String,
    name: String,
    r#type: &'static str,
}

pub(crate) struct Metrics {
    registry: Registry,
    duration: Histogram,
    errors: Family<StepLabels, Counter>,
    writes: Family<KindLabels, Counter>,
    conditions: Family<ConditionLabels, Gauge>,
    leader: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("keystore_operator");
        // From 5 ms to about 40 s, when a reconcile runs into its deadlines.
        let duration = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        let errors = Family::default();
        let writes = Family::default();
        let conditions = Family::default();
        let leader = Gauge::default();
        registry.register("reconcile_duration_seconds", "How long reconciles took", duration.clone());
        registry.register("reconcile_errors", "Reconciles that failed, by step", errors.clone());
        registry.register("api_writes", "Writes sent to the API server, by kind of object", writes.clone());
        registry.register(
            "cluster_condition",
            "Whether a condition of a KeyStoreCluster is true (1), false (0) or unknown (-1)",
            conditions.clone(),
        );
        registry.register(
            "leader",
            "Whether this process leads: 1, or 0 while another one does",
            leader.clone(),
        );
        Self { registry, duration, errors, writes, conditions, leader }
    }

    pub(crate) fn show_leading(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(crate) fn reconciled(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, step: Step) {
        self.errors.get_or_create(&StepLabels { step: step.as_str() }).inc();
    }

    /// To be called for each POST, PUT, PATCH and DELETE, before it is sent. Those of the Lease are of a kind of their own.
    pub(crate) fn writing(&self, kind: &'static str) {
        self.writes.get_or_create(&KindLabels { kind }).inc();
    }

    pub(crate) fn show_conditions(&self, namespace: &str, name: &str, status: &KeyStoreClusterStatus) {
        for type_ in ConditionType::ALL {
            let Some(condition) = status.conditions.iter().find(|c| c.type_ == type_.as_str()) else {
                continue;
            };
            let value = match condition.status.as_str() {
                "True" => 1,
                "False" => 0,
                _ => -1,
            };
            self.conditions.get_or_create(&labels(namespace, name, type_)).set(value);
        }
    }

    /// The cluster is gone.
    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        for type_ in ConditionType::ALL {
            self.conditions.remove(&labels(namespace, name, type_));
        }
    }

    pub(crate) fn encode(&self) -> Result<String, Error> {
        let mut out = String::new();
        text::encode_registry(&mut out, &self.registry)?;
        Ok(in_prometheus_text(&out))
    }
}

/// The same in Prometheus' own text format, which every scraper and checker reads: there, a counter is described
/// under the name of its sample, `_total` included.
fn in_prometheus_text(open_metrics: &str) -> String {
    let counter = |line: &str| Some(line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.to_owned());
    let counters: BTreeSet<String> = open_metrics.lines().filter_map(counter).collect();
    let describe = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let (Some("#"), Some(what), Some(name), Some(rest)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return format!("{line}\n");
        };
        let suffix = if counters.contains(name) { "_total" } else { "" };
        format!("# {what} {name}{suffix} {rest}\n")
    };
    open_metrics.lines().map(describe).collect()
}

fn labels(namespace: &str, name: &str, type_: ConditionType) -> ConditionLabels {
    ConditionLabels { namespace: namespace.to_owned(), name: name.to_owned(), r#type: type_.as_str() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let metrics = Metrics::new();
        metrics.writing("Service");
        metrics.reconciled(Duration::from_millis(3));
        let text = metrics.encode().unwrap();
        for line in [
            "# TYPE keystore_operator_api_writes_total counter",
            "keystore_operator_api_writes_total{kind=\"Service\"} 1",
            "# TYPE keystore_operator_reconcile_duration_seconds histogram",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn the_series_of_a_cluster_go_with_it() {
        let metrics = Metrics::new();
        let condition = serde_json::json!({"conditions": [{
            "type": "Ready", "status": "True", "reason": "Converged", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        metrics.show_conditions("shop", "demo", &serde_json::from_value(condition).unwrap());
        assert!(metrics.encode().unwrap().contains("{namespace=\"shop\",name=\"demo\",type=\"Ready\"} 1"));
        metrics.forget("shop", "demo");
        assert!(!metrics.encode().unwrap().contains("shop"));
    }
}
