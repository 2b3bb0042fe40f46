//! Scenario 33: a HorizontalPodAutoscaler that goes by the CPU of the nodes, up under load and down after it. Each of its
//! changes is one that `kubectl scale` could have made, so no request fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use keystore_crds::KeyStoreCluster;
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Ending, wait_for_writes, wait_served_by};
use crate::harness::ksc::{NAME, REPLICAS, expect_settled, manifest, pod_names, pod_names_of, status};
use crate::harness::machines::Host;
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, Settings};

/// What people are told to begin with: its bounds, its target and its times are made those of a small machine.
const SAMPLE: &str = include_str!("../../../config/samples/autoscaled.yaml");
const WIDE: i32 = 5;
/// What a node asks for. Measured on two cores: busy, each of three nodes takes 150 m; quiet, each of five 10 m. The target
/// is as far from what leads to five nodes (above 66 m) as from what leads to three (below 30 m).
const CPU_REQUESTED: &str = "100m";
const UTILIZATION_PERCENT: i32 = 50;
/// Longer than a few samples, or one of them would decide.
const WINDOW_SECONDS: i32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(2);
const QUIET_PAUSE: Duration = Duration::from_secs(1);
/// Every pod has to be measured twice, and the autoscaler to look.
const MEASURED_WITHIN: Duration = Duration::from_secs(120);
const DECIDED_WITHIN: Duration = Duration::from_secs(180);
const MOVED_WITHIN: Duration = Duration::from_secs(240);
const WRITES_PER_PHASE: usize = 200;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    if !has_metrics(sandbox).await? {
        ensure!(Host::find(sandbox).await?.is_none(), "the metrics API is gone that this Kubernetes has");
        return Ok(Ending::Skipped("there is no metrics API".to_owned()));
    }
    let mut manifest = manifest();
    manifest["spec"]["resources"]["requests"]["cpu"] = CPU_REQUESTED.into();
    let ksc = sandbox.create_ready(&manifest).await?;
    expect_selected(sandbox, &ksc).await?;
    let connected = sandbox.connect_service(WIDE).await?;
    let quiet =
        Settings { pause: QUIET_PAUSE, read_back_within: Duration::from_secs(180), ..Settings::default() };
    let load = Load::start(connected.store.clone(), quiet);
    sandbox
        .api()
        .create(&PostParams::default(), &autoscaler()?)
        .await
        .context("the autoscaler is refused")?;
    wait_measured(sandbox).await?;

    load.set_pause(BUSY_PAUSE);
    wait_scaled(sandbox, WIDE).await?;
    let busy = usage_of(sandbox).await?;
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    load.set_pause(QUIET_PAUSE);
    wait_scaled(sandbox, REPLICAS).await?;
    let idle = usage_of(sandbox).await?;
    let summary =
        load.stop().await.judge(Allowance::NoFailure, WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(format!("{busy} under load, {idle} after it; {summary}")))
}

/// The sample's, with bounds of a few nodes and windows that a test can wait for.
fn autoscaler() -> Result<HorizontalPodAutoscaler> {
    let documents = serde_yaml::Deserializer::from_str(SAMPLE).map(Value::deserialize);
    let documents: Vec<_> = documents.collect::<Result<_, _>>().context("the sample is not YAML")?;
    let kind = "HorizontalPodAutoscaler";
    let mut sample = documents.into_iter().find(|document| document["kind"] == kind).context("no sample")?;
    sample["metadata"]["name"] = NAME.into();
    let spec = &mut sample["spec"];
    spec["scaleTargetRef"]["name"] = NAME.into();
    (spec["minReplicas"], spec["maxReplicas"]) = (REPLICAS.into(), WIDE.into());
    spec["metrics"][0]["resource"]["target"]["averageUtilization"] = UTILIZATION_PERCENT.into();
    for direction in ["scaleUp", "scaleDown"] {
        let behavior = &mut spec["behavior"][direction];
        behavior["stabilizationWindowSeconds"] = WINDOW_SECONDS.into();
        behavior["policies"] = json!([{"type": "Pods", "value": WIDE, "periodSeconds": WINDOW_SECONDS}]);
    }
    serde_json::from_value(sample).context("the sample is no HorizontalPodAutoscaler")
}

async fn has_metrics(sandbox: &Sandbox) -> Result<bool> {
    let groups = sandbox.client.list_api_groups().await?.groups;
    Ok(groups.iter().any(|group| group.name == "metrics.k8s.io"))
}

/// The selector in the status is how an autoscaler finds the pods: it has to find the nodes, and nothing else.
async fn expect_selected(sandbox: &Sandbox, ksc: &KeyStoreCluster) -> Result<()> {
    let selector = status(ksc).map_err(anyhow::Error::msg)?.selector.clone().context("no selector")?;
    let scale = sandbox.api::<KeyStoreCluster>().get_scale(NAME).await?;
    let of_scale = scale.status.and_then(|status| status.selector);
    ensure!(of_scale.as_ref() == Some(&selector), "the scale has the selector {of_scale:?}");
    let pods = sandbox.api::<Pod>().list(&ListParams::default().labels(&selector)).await?;
    let mut found: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
    found.sort();
    ensure!(found == pod_names(), "{selector} finds {found:?}");
    Ok(())
}

/// Until the autoscaler knows the usage of the nodes, it would do nothing whatever they use.
async fn wait_measured(sandbox: &Sandbox) -> Result<()> {
    until("the autoscaler has measured", MEASURED_WITHIN, || async {
        let autoscaler = sandbox.api::<HorizontalPodAutoscaler>().get(NAME).await?;
        let conditions = autoscaler.status.and_then(|status| status.conditions).unwrap_or_default();
        let active = conditions.into_iter().find(|condition| condition.type_ == "ScalingActive");
        Ok(match active {
            Some(active) if active.status == "True" => Look::Done(()),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await
}

/// First the autoscaler has to ask for so many nodes, then they have to be there with their shares.
async fn wait_scaled(sandbox: &Sandbox, replicas: i32) -> Result<()> {
    let is_asked = |ksc: &KeyStoreCluster| match ksc.spec.replicas {
        asked if asked == replicas => Ok(()),
        asked => Err(format!("{asked} replicas are asked for")),
    };
    let what = format!("asked for {replicas} replicas");
    sandbox.wait_ksc(&what, DECIDED_WITHIN, is_asked).await.context("the autoscaler")?;
    let is_settled = |ksc: &KeyStoreCluster| is_asked(ksc).and_then(|()| expect_settled(ksc));
    sandbox.wait_ksc("settled", MOVED_WITHIN, is_settled).await?;
    let pods: Vec<_> = sandbox.store_pods().await?.iter().map(ResourceExt::name_any).collect();
    ensure!(pods == pod_names_of(replicas), "the pods are {pods:?}");
    wait_served_by(sandbox, &pods).await
}

/// What `kubectl top pods` shows, for people.
async fn usage_of(sandbox: &Sandbox) -> Result<String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", sandbox.namespace);
    let usage: Value = sandbox.client.request(http::Request::get(path).body(Vec::new())?).await?;
    let pods = usage["items"].as_array().context("no items")?;
    let of_pod = |pod: &Value| {
        let cpu = pod["containers"][0]["usage"]["cpu"].as_str().context("a pod without usage")?;
        millis(cpu).with_context(|| format!("{cpu} of CPU"))
    };
    let usages = pods.iter().map(of_pod).collect::<Result<Vec<_>>>()?;
    let total: f64 = usages.iter().sum();
    Ok(format!("{:.0} m of CPU a node", total / usages.len().max(1) as f64))
}

/// Of a CPU, as the API writes it: in the largest unit that needs no fraction.
fn millis(cpu: &str) -> Option<f64> {
    let units = [("n", 1e-6), ("u", 1e-3), ("m", 1.0), ("", 1e3)];
    units.into_iter().find_map(|(unit, millis)| Some(cpu.strip_suffix(unit)?.parse::<f64>().ok()? * millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_in_every_unit() {
        let read = ["1500000n", "1500u", "3m", "2"].map(millis);
        assert_eq!(read, [Some(1.5), Some(1.5), Some(3.0), Some(2000.0)]);
        assert_eq!(millis("much"), None);
    }

    #[test]
    fn the_sample_is_an_autoscaler_and_stays_above_the_replication_factor() {
        let spec = autoscaler().unwrap().spec.unwrap();
        assert_eq!((spec.min_replicas, spec.max_replicas), (Some(REPLICAS), WIDE));
        assert_eq!(spec.scale_target_ref.name, NAME);
        let documents =
            serde_yaml::Deserializer::from_str(SAMPLE).map(|document| Value::deserialize(document).unwrap());
        let [store, autoscaler] = &documents.collect::<Vec<_>>()[..] else { panic!("not two documents") };
        assert_eq!(autoscaler["spec"]["scaleTargetRef"]["name"], store["metadata"]["name"]);
        assert!(autoscaler["spec"]["minReplicas"].as_i64() >= store["spec"]["replicationFactor"].as_i64());
        assert!(store["spec"]["resources"]["requests"]["cpu"].is_string());
        assert!(store["spec"].get("replicas").is_none());
    }
}
