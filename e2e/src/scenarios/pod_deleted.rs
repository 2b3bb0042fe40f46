//! Scenario 15: pods die under load, one in order, one at once, and one that stays away for a while; they rejoin as the
//! nodes that they were, and are handed what they missed.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use keystore_client::DEFAULT_KEYSPACE;
use keystore_history::{Key, ReadOutcome};
use kube::api::DeleteParams;

use super::{Ending, GAP_MAX, wait_for_writes};
use crate::harness::ksc::{REPLICAS, expect_whole, identity, manifest, pod_names};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, SCENARIO, Settings, StockClients};
use crate::store::{ClientStore, REQUEST_TIMEOUT, Request};

const BACK_WITHIN: Duration = Duration::from_secs(120);
/// What each phase has to get done for the run to mean anything.
const WRITES_PER_PHASE: usize = 300;
/// Written while a pod is away.
const KEYS_MISSED: u64 = 200;
const HINTS_PENDING: &str = "keystore_hints_pending";
/// Hints, repair and transfer share one budget, which yields to clients.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(60);
/// Each client may have one request under way when a pod dies, and one more runs into the same dead connection.
const FAILURES_PER_CLIENT: usize = 2;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_store().await?;
    let settings = Settings::default();
    let mut load = Load::start(connected.store.clone(), settings);
    wait_for_writes(&load, WRITES_PER_PHASE).await?;

    // In order: the node drains, and no request may fail.
    let stock = StockClients::start(sandbox.forward_service().await?, REPLICAS).await?;
    delete_pod(sandbox, &load, "demo-1", &DeleteParams::default()).await?;
    let stock = stock.stop().await?;
    // At once, as if the process had been killed.
    load.note_fault();
    delete_pod(sandbox, &load, "demo-2", &DeleteParams::default().grace_period(0)).await?;

    let missed = stay_away(sandbox, &load, "demo-0").await?;

    let ksc = sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    let after = identity(&ksc)?;
    ensure!(after == before, "the store was {before:?} and is {after:?}");
    let clients = usize::try_from(settings.clients)?;
    let allowance =
        Allowance::AfterFaults { within: REQUEST_TIMEOUT, failures_max: clients * FAILURES_PER_CLIENT };
    let summary = load.stop().await.judge(allowance, 3 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    ensure!(summary.longest_gap <= GAP_MAX, "nothing was served for too long: {summary}");
    Ok(Ending::Passed(format!("{missed} keys handed over; {stock}; {summary}")))
}

/// Deletes a pod in order, writes while its machine does not take it back, and waits until every hint is handed over:
/// the node itself then has what it missed. Says how many keys those are.
async fn stay_away(sandbox: &Sandbox, load: &Load<ClientStore>, name: &str) -> Result<usize> {
    let uid = sandbox.pod_uid(name).await?;
    let machine = sandbox.place(name).await?.machine;
    sandbox.cordon(&machine).await?;
    sandbox.api::<Pod>().delete(name, &DeleteParams::default()).await?;
    until(format!("{name} is gone"), BACK_WITHIN, || async {
        let now = sandbox.api::<Pod>().get_opt(name).await?.and_then(|pod| pod.metadata.uid);
        Ok(if now.as_ref() == Some(&uid) { Look::NotYet("it is there".into()) } else { Look::Done(()) })
    })
    .await?;
    let others: Vec<_> = pod_names().into_iter().filter(|pod| pod != name).collect();
    let through = sandbox.connect_store_through(&others).await?;
    let mut missed = Vec::new();
    for number in 0..KEYS_MISSED {
        // Nobody but this writes or reads these keys: no read repairs them.
        let key = Key::new(DEFAULT_KEYSPACE, format!("missed-{number}").as_bytes());
        let reply = load.recorder().ask(SCENARIO, &through.store, &key, &Request::put("missed")).await;
        ensure!(reply.is_done(), "a write while {name} is away: {reply:?}");
        missed.push(key);
    }
    until("hints are kept for it", HANDED_OVER_WITHIN, || async {
        let pending = sandbox.node_metric(HINTS_PENDING).await?;
        let is_kept = pending.values().sum::<u64>() >= KEYS_MISSED;
        Ok(if is_kept { Look::Done(()) } else { Look::NotYet(format!("{pending:?}")) })
    })
    .await?;

    sandbox.uncordon(&machine).await?;
    sandbox.wait_pod_ready(name, Some(&uid), BACK_WITHIN).await?;
    until("every hint is handed over", HANDED_OVER_WITHIN, || async {
        let pending = sandbox.node_metric(HINTS_PENDING).await?;
        let is_done = pending.len() == pod_names().len() && pending.values().all(|pending| *pending == 0);
        Ok(if is_done { Look::Done(()) } else { Look::NotYet(format!("{pending:?}")) })
    })
    .await?;
    let itself = sandbox.connect_store_through(&[name.to_owned()]).await?;
    for key in &missed {
        let read = itself.store.get_at_one(key).await;
        let is_there =
            matches!(&read, ReadOutcome::Found(seen) if seen.iter().all(|seen| seen.value == b"missed"));
        ensure!(is_there, "{name} was handed its hints and has for {key:?}: {read:?}");
    }
    Ok(missed.len())
}

/// Deletes a pod and goes on until its successor serves and clients have written a good deal more.
async fn delete_pod(
    sandbox: &Sandbox,
    load: &Load<ClientStore>,
    name: &str,
    params: &DeleteParams,
) -> Result<()> {
    let pods = sandbox.api::<Pod>();
    let uid = sandbox.pod_uid(name).await?;
    pods.delete(name, params).await?;
    sandbox.wait_pod_ready(name, Some(&uid), BACK_WITHIN).await?;
    sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    wait_for_writes(load, WRITES_PER_PHASE).await
}
