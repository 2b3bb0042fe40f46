//! The claims and volumes of a store's pods.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::ksc::NAME;
use super::sandbox::Sandbox;

const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// The claim of a pod.
pub fn claim_name(pod: &str) -> String {
    format!("data-{pod}")
}

impl Sandbox {
    /// UIDs of the store's claims, by name.
    pub async fn claim_uids(&self) -> Result<BTreeMap<String, String>> {
        let claims = self.api::<PersistentVolumeClaim>().list(&ListParams::default()).await?;
        let ours = claims.items.into_iter().filter(|claim| claim.name_any().starts_with(&claim_name(NAME)));
        ours.map(|claim| Ok((claim.name_any(), claim.metadata.uid.context("a claim without a UID")?)))
            .collect()
    }

    /// The machine that a pod's volume is tied to; none if it can be attached anywhere.
    pub async fn machine_of_volume(&self, pod: &str) -> Result<Option<String>> {
        let claim = self.api::<PersistentVolumeClaim>().get(&claim_name(pod)).await?;
        let volume = claim.spec.and_then(|spec| spec.volume_name).context("the claim is not bound")?;
        let volume = Api::<PersistentVolume>::all(self.client.clone()).get(&volume).await?;
        Ok(machine(&volume))
    }
}

fn machine(volume: &PersistentVolume) -> Option<String> {
    let terms = &volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?.node_selector_terms;
    let mut expressions = terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    let hostname = expressions.find(|expression| expression.key == HOSTNAME_LABEL)?;
    hostname.values.as_ref()?.first().cloned()
}

/// How many machines take pods.
pub async fn schedulable_machines(client: Client) -> Result<usize> {
    let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client).list(&ListParams::default()).await?;
    let takes_pods = |spec: &k8s_openapi::api::core::v1::NodeSpec| {
        spec.unschedulable != Some(true)
            && spec.taints.iter().flatten().all(|taint| taint.effect != "NoSchedule")
    };
    Ok(nodes.items.iter().filter(|node| node.spec.as_ref().is_none_or(takes_pods)).count())
}
