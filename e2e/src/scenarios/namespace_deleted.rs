//! Scenario 27: deleting the namespace finishes, of a store in use and of one in the middle of its creation, and the
//! operator takes the refusals of a terminating namespace for what they are.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;

use super::{Ending, wait_for_writes};
use crate::harness::ksc::{NAME, manifest};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Load, Settings};

const STARTED_WITHIN: Duration = Duration::from_secs(60);
/// Volumes unmounted, grace periods, finalizers of Kubernetes itself.
const GONE_WITHIN: Duration = Duration::from_secs(120);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let operator = Operator::new(sandbox.client.clone());
    let errors = operator.reconcile_errors().await?;

    sandbox.create_ready(&manifest()).await?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    wait_for_writes(&load, 200).await?;
    let in_use = delete(sandbox).await?;
    // Its keys are gone with it: there is nothing to read back and to judge.
    drop(load);

    let newborn = Sandbox::create(sandbox.client.clone(), "namespace-newborn").await?;
    newborn.create_ksc(&manifest()).await?;
    until("the operator has begun", STARTED_WITHIN, || async {
        let is_there = newborn.api::<StatefulSet>().get_opt(NAME).await?.is_some();
        Ok(if is_there { Look::Done(()) } else { Look::NotYet("no StatefulSet".into()) })
    })
    .await?;
    let in_creation = delete(&newborn).await?;
    newborn.remove().await?;

    let now = operator.reconcile_errors().await?;
    ensure!(now == errors, "the operator's errors were {errors:?} and are {now:?}");
    Ok(Ending::Passed(format!(
        "gone after {} s in use, {} s in creation",
        in_use.as_secs(),
        in_creation.as_secs()
    )))
}

/// Says how long it took.
async fn delete(sandbox: &Sandbox) -> Result<Duration> {
    let started = tokio::time::Instant::now();
    tokio::time::timeout(GONE_WITHIN, sandbox.remove_namespace()).await??;
    Ok(started.elapsed())
}
