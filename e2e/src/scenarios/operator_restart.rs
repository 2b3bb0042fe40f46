//! An operator that restarts finds everything as it should be: no object is written, and the store never notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::DeleteParams;

use super::Ending;
use crate::harness::ksc::{expect_whole, identity, manifest};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::versions::{differences, versions};
use crate::harness::wait::throughout;
use crate::load::{Allowance, Load, Settings};

const IDLE_FOR: Duration = Duration::from_secs(15);
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    sandbox.wait_ksc("whole", SETTLED_WITHIN, expect_whole).await?;
    let connected = sandbox.connect_store().await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let at_rest = sandbox.wait_at_rest().await?;

    let operator = Operator::new(sandbox.client.clone());
    operator.restart(&DeleteParams::default()).await?;
    operator.wait_reconciled(&sandbox.namespace).await?;
    throughout("nothing is written", IDLE_FOR, || async {
        let now = versions(sandbox).await?;
        ensure!(now == at_rest, "changed: {}", differences(&at_rest, &now));
        Ok(())
    })
    .await?;

    let ksc = sandbox.wait_ksc("whole", SETTLED_WITHIN, expect_whole).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    let summary = load.stop().await.judge(Allowance::NoFailure, 300).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(format!("{} objects unmoved; {summary}", at_rest.len())))
}
