//! Scenario 13: the operator is away while the spec is edited, several times. The store never notices, and once the
//! operator is back it catches up with the last word.

use std::time::Duration;

use anyhow::{Result, ensure};
use keystore_history::Key;
use kube::ResourceExt;
use serde_json::json;

use super::{Ending, wait_for_writes, wait_served_by};
use crate::harness::ksc::{
    REPLICAS, expect_settled, expect_whole, identity, manifest, pod_names, pod_names_of,
};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::throughout;
use crate::load::{Allowance, Load, SCENARIO, Settings};
use crate::store::{CAUSAL_KEYSPACE, Request};

const WIDE: i32 = 4;
const KEYSPACE: &str = "later";
const SETTLED_WITHIN: Duration = Duration::from_secs(300);
const UNMOVED_FOR: Duration = Duration::from_secs(10);
const WRITES_PER_PHASE: usize = 200;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let operator = Operator::new(sandbox.client.clone());
    sandbox.create_ready(&manifest()).await?;
    let before = identity(&sandbox.wait_ksc("whole", SETTLED_WITHIN, expect_whole).await?)?;
    let connected = sandbox.connect_service(WIDE).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    operator.scale(sandbox, 0).await?;
    let pods = sandbox.pod_uids().await?;
    for replicas in [5, 1, WIDE] {
        sandbox.scale(replicas).await?;
    }
    let keyspaces = json!([
        {"name": "default", "mode": "lww"},
        {"name": CAUSAL_KEYSPACE, "mode": "siblings"},
        {"name": KEYSPACE, "mode": "lww"},
    ]);
    sandbox.patch_spec(json!({"keyspaces": keyspaces})).await?;
    throughout("nothing happens", UNMOVED_FOR, || async {
        let now = sandbox.pod_uids().await?;
        ensure!(now == pods, "the pods were {pods:?} and are {now:?}");
        Ok(())
    })
    .await?;
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    operator.scale(sandbox, 1).await?;
    let ksc = sandbox.wait_ksc("caught up", SETTLED_WITHIN, expect_settled).await?;
    let after = identity(&ksc)?;
    let names: Vec<_> = sandbox.store_pods().await?.iter().map(ResourceExt::name_any).collect();
    ensure!(names == pod_names_of(WIDE), "the pods are {names:?}");
    ensure!(after.cluster_id == before.cluster_id, "the store is another one");
    ensure!(before.nodes.iter().all(|node| after.nodes.get(node.0) == Some(node.1)), "a node is another one");
    wait_served_by(sandbox, &names).await?;
    let now = sandbox.pod_uids().await?;
    ensure!(pods.iter().all(|pod| now.get(pod.0) == Some(pod.1)), "a pod was restarted");
    ensure!(pods.len() == usize::try_from(REPLICAS)? && pods.len() == pod_names().len(), "{pods:?}");
    let key = Key::new(KEYSPACE, b"first");
    let reply = load.recorder().ask(SCENARIO, &connected.store, &key, &Request::put("there")).await;
    ensure!(reply.is_done(), "the keyspace that was added: {reply:?}");
    wait_for_writes(&load, WRITES_PER_PHASE).await?;
    let summary =
        load.stop().await.judge(Allowance::NoFailure, 3 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}
