//! Scenario 14: two operators run, and the one that leads is killed in the middle of a rollout, and of a scale; the other
//! goes on where it was, and nothing is done twice.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams};

use super::{Ending, scale_until_data_moves, wait_for_writes};
use crate::harness::ksc::{StoreIdentity, expect_settled, expect_whole, identity, manifest, pod_names};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::versions::{differences, versions};
use crate::harness::wait::{Look, throughout, until};
use crate::load::{Allowance, Load, Settings};
use crate::store::ClientStore;

/// The pod that a rollout begins with.
const FIRST: &str = "demo-2";
/// The number of nodes to which it is scaled, and the pod of the one that joins.
const WIDE: i32 = 4;
const JOINED: &str = "demo-3";
const MOVED_WITHIN: Duration = Duration::from_secs(240);
const ROLLED_WITHIN: Duration = Duration::from_secs(180);
/// Long enough for another leader to look at everything.
const UNMOVED_FOR: Duration = Duration::from_secs(10);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let operator = Operator::new(sandbox.client.clone());
    operator.scale(sandbox, 2).await?;
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let connected = sandbox.connect_service(WIDE).await?;
    // On one stream to each node, which has to outlive the rollout as well as single calls do.
    let load = Load::start(connected.store.in_session(), Settings::default());
    wait_for_writes(&load, 200).await?;

    let first = sandbox.pod_uid(FIRST).await?;
    sandbox.begin_rollout().await?;
    until("the rollout has begun", ROLLED_WITHIN, || async {
        let pod = sandbox.api::<Pod>().get_opt(FIRST).await?;
        let is_gone = pod.is_none_or(|pod| pod.metadata.uid.as_ref() != Some(&first));
        Ok(if is_gone { Look::Done(()) } else { Look::NotYet(format!("{FIRST} is the old one")) })
    })
    .await?;
    operator.restart(&DeleteParams::default().grace_period(0)).await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    let ksc = sandbox.wait_ksc("whole", ROLLED_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    for pod in pod_names() {
        let made = times_made(sandbox, &pod).await?;
        ensure!(
            made == 2,
            "{pod} was made {made} times, by the creation and by one rollout it would be twice"
        );
    }

    // And where there is nothing to do, another leader does nothing.
    let at_rest = sandbox.wait_at_rest().await?;
    operator.restart(&DeleteParams::default().grace_period(0)).await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    throughout("nothing is written", UNMOVED_FOR, || async {
        let now = versions(sandbox).await?;
        ensure!(now == at_rest, "changed: {}", differences(&at_rest, &now));
        Ok(())
    })
    .await?;
    scale(sandbox, &load, &connected.store, &before).await?;
    let summary = load.stop().await.judge(Allowance::NoFailure, 400).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(summary.to_string()))
}

/// Kills the leader while data moves: one node joins once, one move ends, and no other pod is touched.
async fn scale(
    sandbox: &Sandbox,
    load: &Load<ClientStore>,
    store: &ClientStore,
    before: &StoreIdentity,
) -> Result<()> {
    let pods = sandbox.pod_uids().await?;
    scale_until_data_moves(sandbox, load, store, WIDE).await?;
    Operator::new(sandbox.client.clone()).restart(&DeleteParams::default().grace_period(0)).await?;
    let after = identity(&sandbox.wait_ksc("settled", MOVED_WITHIN, expect_settled).await?)?;
    sandbox.expect_one_move(before, &after, 1).await?;
    let now = sandbox.pod_uids().await?;
    ensure!(pods.iter().all(|pod| now.get(pod.0) == Some(pod.1)), "the pods were {pods:?} and are {now:?}");
    let made = times_made(sandbox, JOINED).await?;
    ensure!(made == 1, "{JOINED} was made {made} times, by the scale it would be once");
    Ok(())
}

/// How often the StatefulSet says that it has made this pod.
async fn times_made(sandbox: &Sandbox, pod: &str) -> Result<i32> {
    let selector = ListParams::default().fields("involvedObject.kind=StatefulSet,reason=SuccessfulCreate");
    let events = sandbox.api::<Event>().list(&selector).await?.items;
    let speaks_of_it = format!("create Pod {pod} in StatefulSet");
    let ours =
        events.iter().filter(|event| event.message.as_deref().unwrap_or("").starts_with(&speaks_of_it));
    Ok(ours.map(|event| event.count.unwrap_or(1)).sum())
}
