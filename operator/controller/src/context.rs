//! What every reconcile shares, and how long it waits after a failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::runtime::events::Recorder;
use rand::Rng;

use crate::leadership::Leadership;
use crate::metrics::Metrics;
use crate::nodes::NodeClient;

pub(crate) struct Context {
    /// Behind the gate: it writes only while this process leads.
    pub(crate) client: Client,
    /// To be asked before anything is sent to a node that changes it.
    pub(crate) leadership: Leadership,
    pub(crate) nodes: Arc<dyn NodeClient>,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) node_image: String,
    pub(crate) failures: Failures,
}

impl Context {
    /// A cluster is gone: so is what was counted of it.
    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        self.metrics.forget(namespace, name);
        self.failures.forget(&object_key(namespace, name));
    }
}

/// How an object is called among the failures.
pub(crate) fn object_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// How often each object has failed in a row. Holds only objects that are failing now.
#[derive(Default)]
pub(crate) struct Failures(Mutex<BTreeMap<String, u32>>);

impl Failures {
    /// Counts one more failure and says how long to wait: doubled each time from `first` to `most`, less up to half
    /// of it at random, so that many objects do not come back at once.
    pub(crate) fn delay(&self, object: &str, first: Duration, most: Duration) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object.to_owned()).or_default();
        let delay = first.saturating_mul(1 << (*count).min(16)).min(most);
        *count = count.saturating_add(1);
        delay.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    pub(crate) fn forget(&self, object: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }
}

/// Spread over a quarter, so that idle clusters are not all looked at in the same moment.
pub(crate) fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.875..=1.125))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_limit_and_starts_again_after_success() {
        let failures = Failures::default();
        let (first, most) = (Duration::from_secs(1), Duration::from_secs(8));
        for (attempt, full) in [1, 2, 4, 8, 8].into_iter().enumerate() {
            let full = Duration::from_secs(full);
            let delay = failures.delay("shop/demo", first, most);
            assert!(delay >= full / 2 && delay <= full, "{attempt}: {delay:?}");
        }
        failures.forget("shop/demo");
        assert!(failures.delay("shop/demo", first, most) <= first);
    }
}
