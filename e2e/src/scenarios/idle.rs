//! Scenario 4: while nothing happens, nothing is written to Kubernetes: no object of the store moves, and the
//! operator's own count of its writes stands still, its Lease apart.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Ending;
use crate::harness::ksc::{expect_whole, manifest};
use crate::harness::operator::Operator;
use crate::harness::sandbox::Sandbox;
use crate::harness::versions::{differences, versions};
use crate::harness::wait::throughout;

const IDLE_FOR: Duration = Duration::from_secs(60);
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    sandbox.create_ready(&manifest()).await?;
    sandbox.wait_ksc("whole", SETTLED_WITHIN, expect_whole).await?;
    let at_rest = sandbox.wait_at_rest().await?;
    let operator = Operator::new(sandbox.client.clone());
    let written = operator.api_writes().await?;
    ensure!(!written.is_empty(), "the operator does not count its writes, though it has just made a store");
    throughout("nothing is written", IDLE_FOR, || async {
        let now = versions(sandbox).await?;
        ensure!(now == at_rest, "changed: {}", differences(&at_rest, &now));
        Ok(())
    })
    .await?;
    let now = operator.api_writes().await?;
    ensure!(now == written, "the operator's writes were {written:?} and are {now:?}");
    Ok(Ending::Passed(format!("{} objects unmoved, {} s", at_rest.len(), IDLE_FOR.as_secs())))
}
