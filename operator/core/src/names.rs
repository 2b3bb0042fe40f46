//! The names and labels of everything that belongs to a cluster.
//!
//! People and scripts type these, and volumes are found again by them: none may ever change.

use std::collections::BTreeMap;

/// Who wrote a field, in the API server's books.
pub const FIELD_MANAGER: &str = "keystore-operator";
pub const CLUSTER_LABEL: &str = "keystore.dev/cluster";
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// On the cluster: the hash of the pending template that a person lets the operator apply.
pub const APPROVE_ANNOTATION: &str = "keystore.dev/approve-update";
/// On each child: the hash of what was applied, so that a field that is no longer wanted shows.
pub const APPLIED_ANNOTATION: &str = "keystore.dev/applied";
/// On the StatefulSet: the hash of what people asked for, and of the pods that the operator made of it.
pub const SPEC_ANNOTATION: &str = "keystore.dev/spec-hash";
pub const TEMPLATE_ANNOTATION: &str = "keystore.dev/template-hash";

pub const CLIENT_PORT: u16 = 7400;
pub const PEER_PORT: u16 = 7401;
pub const GOSSIP_PORT: u16 = 7402;
pub const HTTP_PORT: u16 = 7403;

const COMPONENT: &str = "node";

/// The names that follow from a cluster's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub namespace: String,
    pub cluster: String,
}

impl Names {
    /// The headless Service: each pod's own DNS name, ready or not.
    pub fn headless_service(&self) -> String {
        format!("{}-nodes", self.cluster)
    }

    /// The DNS name under which every pod's address is found.
    pub fn seeds_host(&self) -> String {
        format!("{}.{}.svc", self.headless_service(), self.namespace)
    }

    pub fn config_map(&self, hash: &str) -> String {
        format!("{}-config-{hash}", self.cluster)
    }

    /// What the names of this cluster's ConfigMaps begin with.
    pub fn config_map_prefix(&self) -> String {
        self.config_map("")
    }

    pub fn pod(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.cluster)
    }

    /// The claim of the volume of a pod.
    pub fn claim_of(&self, pod: &str) -> String {
        format!("data-{pod}")
    }

    /// The ordinal of a pod of this cluster, or of a member named after one.
    pub fn ordinal(&self, pod: &str) -> Option<u32> {
        let digits = pod.strip_prefix(&self.cluster)?.strip_prefix('-')?;
        let ordinal = digits.parse().ok()?;
        (self.pod(ordinal) == pod).then_some(ordinal)
    }

    /// What selects the pods. Part of the StatefulSet for ever.
    pub fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (CLUSTER_LABEL.to_owned(), self.cluster.clone()),
            (COMPONENT_LABEL.to_owned(), COMPONENT.to_owned()),
        ])
    }

    /// The same as text, for `kubectl scale` and autoscalers.
    pub fn selector_text(&self) -> String {
        format!("{CLUSTER_LABEL}={},{COMPONENT_LABEL}={COMPONENT}", self.cluster)
    }

    /// The labels of every child.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        for (key, value) in [
            ("app.kubernetes.io/name", "keystore"),
            ("app.kubernetes.io/instance", &self.cluster),
            ("app.kubernetes.io/managed-by", FIELD_MANAGER),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_ordinal_is_read_from_its_name_and_from_no_other() {
        let names = Names { namespace: "shop".into(), cluster: "demo".into() };
        for (pod, expected) in [
            ("demo-0", Some(0)),
            ("demo-12", Some(12)),
            ("demo-01", None),
            ("demo-", None),
            ("demo-x-1", None),
            ("other-1", None),
        ] {
            assert_eq!(names.ordinal(pod), expected, "{pod}");
        }
    }
}
