//! Scenario 1: a manifest becomes a store of three nodes, and it serves.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keystore_client::{DEFAULT_KEYSPACE, Layout};
use keystore_history::{Key, ReadOutcome, Seen, WriteOutcome};
use kube::ResourceExt;
use kube::api::ListParams;

use super::Ending;
use crate::harness::ksc::{
    CLIENT_PORT, NAME, PARTITIONS, REPLICATION_FACTOR, expect_whole, identity, is_ready, manifest, pod_names,
};
use crate::harness::sandbox::Sandbox;
use crate::store::{Reply, Request, Store};

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let ksc = sandbox.create_ready(&manifest()).await?;
    expect_whole(&ksc).map_err(anyhow::Error::msg)?;
    let pods = sandbox.store_pods().await?;
    ensure!(pods.iter().map(ResourceExt::name_any).eq(pod_names()), "the pods are {:?}", names(&pods));
    ensure!(pods.iter().all(is_ready), "Ready, but not every pod is");
    check_children(sandbox).await?;
    check_layouts(sandbox, &identity(&ksc)?.cluster_id).await?;
    check_outside(sandbox).await?;
    check_inside(sandbox).await?;
    Ok(Ending::Passed(format!("{PARTITIONS} partitions, {REPLICATION_FACTOR} owners each")))
}

fn names<K: ResourceExt>(objects: &[K]) -> Vec<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}

async fn check_children(sandbox: &Sandbox) -> Result<()> {
    sandbox.api::<StatefulSet>().get(NAME).await.context("StatefulSet")?;
    sandbox.api::<ServiceAccount>().get(NAME).await.context("ServiceAccount")?;
    sandbox.api::<PodDisruptionBudget>().get(NAME).await.context("PodDisruptionBudget")?;
    sandbox.api::<Service>().get(&format!("{NAME}-nodes")).await.context("headless Service")?;
    let service = sandbox.api::<Service>().get(NAME).await.context("client Service")?;
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    ensure!(
        ports.iter().map(|port| port.port).eq([i32::from(CLIENT_PORT)]),
        "the client Service has other ports than clients need: {ports:?}"
    );
    let configurations = sandbox.api::<ConfigMap>().list(&ListParams::default()).await?.items;
    let ours: Vec<_> =
        configurations.iter().filter(|map| map.name_any().starts_with(&format!("{NAME}-config-"))).collect();
    ensure!(
        matches!(ours[..], [ConfigMap { immutable: Some(true), .. }]),
        "one immutable configuration expected, there are {:?}",
        names(&configurations)
    );
    Ok(())
}

/// Every node has the same layout in force, and it gives every partition its owners.
async fn check_layouts(sandbox: &Sandbox, cluster_id: &str) -> Result<()> {
    let mut digests = BTreeSet::new();
    for pod in pod_names() {
        let (admin, _forward) = sandbox.connect_admin(&pod).await?;
        let Some((layout, true)) = admin.get_layout().await? else { bail!("{pod} has no layout in force") };
        ensure!(
            layout.cluster.to_string() == cluster_id,
            "{pod} belongs to {}, not {cluster_id}",
            layout.cluster
        );
        check_owners(&layout)?;
        digests.insert(layout.digest());
    }
    ensure!(digests.len() == 1, "the nodes have different layouts");
    Ok(())
}

fn check_owners(layout: &Layout) -> Result<()> {
    ensure!(i32::from(layout.partitions.get()) == PARTITIONS, "{} partitions", layout.partitions.get());
    for ring in layout.rings() {
        for (partition, replicas) in ring.iter() {
            let owners: BTreeSet<_> = replicas.iter().map(|replica| replica.node).collect();
            ensure!(
                owners.len() == usize::try_from(REPLICATION_FACTOR)?,
                "{partition:?} has owners {owners:?}"
            );
            ensure!(
                owners.iter().all(|owner| layout.member(*owner).is_some()),
                "{partition:?} has a stranger"
            );
        }
    }
    Ok(())
}

async fn check_outside(sandbox: &Sandbox) -> Result<()> {
    let connected = sandbox.connect_store().await?;
    let ask =
        async |request: Request| connected.store.ask(&Key::new(DEFAULT_KEYSPACE, b"outside"), &request).await;
    let Reply::Written(WriteOutcome::Done { stamp, .. }, _) = ask(Request::put("hello")).await else {
        bail!("put from outside")
    };
    let read = ask(Request::Get).await;
    let written = Seen { value: "hello".into(), stamp };
    ensure!(read == Reply::Read(ReadOutcome::Found(vec![written]), None), "from outside: {read:?}");
    let Reply::Written(WriteOutcome::Done { stamp: deleted, .. }, _) = ask(Request::delete()).await else {
        bail!("delete from outside")
    };
    ensure!(deleted > stamp, "the delete's stamp is not above the put's");
    let read = ask(Request::Get).await;
    ensure!(read == Reply::Read(ReadOutcome::Missing, None), "deleted from outside: {read:?}");
    let read = connected.store.ask(&Key::new(DEFAULT_KEYSPACE, b"never written"), &Request::Get).await;
    ensure!(read == Reply::Read(ReadOutcome::Missing, None), "never written: {read:?}");
    Ok(())
}

/// As an application would: a pod, the Service's name, a value read where it was not written.
async fn check_inside(sandbox: &Sandbox) -> Result<()> {
    let expect = async |arguments: &[&str], exit_code, output: Option<&str>| {
        let ended = sandbox.keystorectl(arguments).await?;
        let is_right =
            ended.exit_code == exit_code && output.is_none_or(|output| ended.output.trim_end() == output);
        ensure!(is_right, "keystorectl {arguments:?} ended with {ended:?}");
        Ok(())
    };
    expect(&["put", "inside", "hello from a pod"], 0, None).await?;
    expect(&["get", "inside"], 0, Some("hello from a pod")).await?;
    let connected = sandbox.connect_store().await?;
    let read = connected.store.ask(&Key::new(DEFAULT_KEYSPACE, b"inside"), &Request::Get).await;
    ensure!(
        matches!(&read, Reply::Read(ReadOutcome::Found(values), _) if values.iter().map(|seen| &seen.value[..]).eq([b"hello from a pod"])),
        "written from inside, read from outside: {read:?}"
    );
    expect(&["delete", "inside"], 0, None).await?;
    // 3: no such key.
    expect(&["get", "inside"], 3, None).await
}
