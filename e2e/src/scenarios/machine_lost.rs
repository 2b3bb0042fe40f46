//! Scenario 35: a machine is lost for good while data moves to more nodes. After `spec.replaceAfterSeconds` its nodes are
//! given up; the move ends or turns back, and other pods take their place until every partition has all its copies again.
//! Clients of the other machines go on all along.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keystore_crds::{ConditionType, KeyStoreCluster, NodeState};
use kube::ResourceExt;

use super::{Ending, GAP_MAX, scale_until_data_moves, wait_for_writes};
use crate::harness::ksc::{
    REPLICAS, REPLICATION_FACTOR, expect_condition, identity, manifest, pod_names, status,
};
use crate::harness::machines::Host;
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::load::{Allowance, Load, Settings};
use crate::store::REQUEST_TIMEOUT;

const WIDE: i32 = 5;
const REPLACE_AFTER_SECONDS: i32 = 30;
/// Kubernetes takes most of a minute to find that a machine is gone.
const RESTORED_WITHIN: Duration = Duration::from_secs(480);
/// Within which the others know it: until then requests may wait for answers that do not come.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
const WRITES_PER_PHASE: usize = 200;
/// A client waits for one request when the machine goes, and for one more through the other node, if that has not noticed
/// either. Whoever has noticed waits for nobody there.
const REQUESTS_LOST: usize = 2;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let Some(host) = Host::find(sandbox).await? else {
        return Ok(Ending::Skipped("needs host access".into()));
    };
    let mut manifest = manifest();
    manifest["spec"]["replaceAfterSeconds"] = REPLACE_AFTER_SECONDS.into();
    let before = identity(&sandbox.create_ready(&manifest).await?)?;
    let (machine, others) = choose_machine(sandbox).await?;
    let connected = sandbox.connect_store_through(&others).await?;
    let settings = Settings::default();
    let mut load = Load::start(connected.store.clone(), settings);
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    scale_until_data_moves(sandbox, &load, &connected.store, WIDE).await?;
    let gone = pods_on(sandbox, &machine).await?;
    load.note_fault();
    host.lose(sandbox, &machine)?;
    let ksc = sandbox
        .wait_ksc("whole without the machine", RESTORED_WITHIN, |ksc| expect_restored(ksc, &gone))
        .await?;
    ensure!(identity(&ksc)?.cluster_id == before.cluster_id, "the store is another one");
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    let failures_max = usize::try_from(settings.clients)? * REQUESTS_LOST;
    let allowance = Allowance::AfterFaults { within: NOTICED_WITHIN + REQUEST_TIMEOUT, failures_max };
    let summary = load.stop().await.judge(allowance, 2 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    ensure!(summary.longest_gap <= GAP_MAX, "nothing was served for too long: {summary}");
    Ok(Ending::Passed(format!("{} nodes of {machine} replaced; {summary}", gone.len())))
}

/// A machine that runs a node and not the operator, and the store's pods elsewhere.
async fn choose_machine(sandbox: &Sandbox) -> Result<(String, Vec<String>)> {
    let operator = Operator::new(sandbox.client.clone()).leader().await?;
    let taken = operator.spec.and_then(|spec| spec.node_name).context("an operator without a machine")?;
    let mut machine = None;
    for pod in pod_names() {
        let place = sandbox.place(&pod).await?;
        if place.machine != taken {
            machine = Some(place.machine);
        }
    }
    let machine = machine.context("every node runs beside the operator")?;
    let gone = pods_on(sandbox, &machine).await?;
    let others: Vec<_> = pod_names().into_iter().filter(|pod| !gone.contains(pod)).collect();
    ensure!(others.len() + 1 == usize::try_from(REPLICAS)?, "{gone:?} are on {machine}");
    Ok((machine, others))
}

async fn pods_on(sandbox: &Sandbox, machine: &str) -> Result<BTreeSet<String>> {
    let pods = sandbox.store_pods().await?;
    let is_there = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref()?.node_name.clone().filter(|on| on == machine)
    };
    Ok(pods.into_iter().filter(|pod| is_there(pod).is_some()).map(|pod| pod.name_any()).collect())
}

/// As many nodes as the spec says hold all copies, none of them on the machine.
fn expect_restored(ksc: &KeyStoreCluster, gone: &BTreeSet<String>) -> Result<(), String> {
    expect_condition(ksc, ConditionType::Ready, "True", "Converged")?;
    expect_condition(ksc, ConditionType::Degraded, "False", "AsPromised")?;
    let nodes = &status(ksc)?.nodes;
    let holders: Vec<_> = nodes.iter().filter(|node| node.partitions > 0).collect();
    let is_well =
        |node: &&keystore_crds::NodeStatus| node.state == NodeState::Serving && !gone.contains(&node.pod);
    let copies: i32 = holders.iter().map(|node| node.partitions).sum();
    let is_right = holders.iter().all(is_well)
        && i32::try_from(holders.len()) == Ok(ksc.spec.replicas)
        && copies == ksc.spec.partitions * REPLICATION_FACTOR;
    if is_right { Ok(()) } else { Err(format!("the nodes are {nodes:?}")) }
}
