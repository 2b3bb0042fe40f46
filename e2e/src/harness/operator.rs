//! The operator's pods: which one leads, restarting it, and what its metrics say.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::ksc::is_ready;
use super::metrics::{counters, metrics_of};
use super::sandbox::Sandbox;
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
        let mut living = self.all_pods().await?;
        living.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        ensure!(!living.is_empty(), "no pod has the labels {SELECTOR}: is the operator installed?");
        Ok(living)
    }

    /// Those that are about to go as well.
    async fn all_pods(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::all(self.client.clone()).list(&ListParams::default().labels(SELECTOR)).await?;
        Ok(pods.items)
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

    /// Runs so many pods of it, until the scenario is over; then it is as before.
    pub async fn scale(&self, sandbox: &Sandbox, replicas: i32) -> Result<()> {
        let all: Api<Deployment> = Api::all(self.client.clone());
        let found = all.list(&ListParams::default().labels(SELECTOR)).await?.items;
        let [deployment] = &found[..] else {
            bail!("{} Deployments have the labels {SELECTOR}", found.len())
        };
        let (name, namespace) = (deployment.name_any(), deployment.namespace().unwrap_or_default());
        let before = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let scale = async move |replicas: i32| {
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            api.patch_scale(&name, &PatchParams::default(), &patch).await?;
            Ok(())
        };
        scale(replicas).await?;
        sandbox.undo_later(async move { scale(before).await });
        until(format!("{replicas} operators run"), RESTARTED_WITHIN, || async {
            let pods = self.all_pods().await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            let is_done = i32::try_from(ready).is_ok_and(|ready| ready == replicas) && pods.len() == ready;
            Ok(if is_done {
                Look::Done(())
            } else {
                Look::NotYet(format!("{ready} of {} are ready", pods.len()))
            })
        })
        .await
    }

    /// The leader's metrics, as text, through the API server.
    pub async fn metrics(&self) -> Result<String> {
        self.metrics_of(&self.leader().await?).await
    }

    async fn metrics_of(&self, pod: &Pod) -> Result<String> {
        metrics_of(&self.client, pod, METRICS_PORT).await
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
