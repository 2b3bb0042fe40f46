//! Scenario 10: the data does not fit onto fewer nodes. The scale-down is held, the condition says how much is missing,
//! nothing moves, and setting the number back needs nothing else.

use std::time::Duration;

use anyhow::{Result, ensure};
use keystore_crds::{ConditionType, KeyStoreCluster};

use super::{Ending, wait_for_writes, write_large};
use crate::harness::ksc::{
    REPLICAS, condition, expect_condition, expect_settled, identity, manifest, pod_names_of,
};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::throughout;
use crate::load::{Allowance, Load, Settings};
use crate::store::ClientStore;

/// Two in each of up to three zones, so that all hold about the same.
const WIDE: i32 = 6;
const SIZE_MIB: u64 = 320;
const SIZE_BYTES: &str = "keystore_storage_disk_size_bytes";
const AVAILABLE_BYTES: &str = "keystore_storage_disk_available_bytes";
/// How full fewer nodes would be: more than the 90 % that may be used.
const FULL_PERCENT: u64 = 96;
/// Written between two looks at the disks.
const BATCH: u64 = 16;
const VALUES_MAX: u64 = 2_000;
const NOTICED_WITHIN: Duration = Duration::from_secs(90);
/// Long enough for several looks of the operator.
const HELD_FOR: Duration = Duration::from_secs(10);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let mut manifest = manifest();
    manifest["spec"]["replicas"] = WIDE.into();
    manifest["spec"]["storage"]["size"] = format!("{SIZE_MIB}Mi").into();
    sandbox.create_ready(&manifest).await?;
    let largest = sandbox.node_metric(SIZE_BYTES).await?.into_values().max().unwrap_or(0);
    if largest > 2 * (SIZE_MIB << 20) {
        return Ok(Ending::Skipped("volumes are not of the size that was asked for".into()));
    }
    let connected = sandbox.connect_store_through(&pod_names_of(REPLICAS)).await?;
    let load = Load::start(connected.store.clone(), Settings::default());
    let values = fill(sandbox, &load, &connected.store).await?;

    let before = identity(&sandbox.wait_ksc("settled", NOTICED_WITHIN, expect_settled).await?)?;
    sandbox.scale(REPLICAS).await?;
    let is_held = |ksc: &KeyStoreCluster| {
        expect_condition(ksc, ConditionType::Stalled, "True", "InsufficientSpace")?;
        expect_condition(ksc, ConditionType::Ready, "False", "Held")?;
        expect_condition(ksc, ConditionType::Available, "True", "QuorumAvailable")
    };
    let ksc = sandbox.wait_ksc("held", NOTICED_WITHIN, is_held).await?;
    let message =
        condition(&ksc, ConditionType::Stalled).map(|stalled| stalled.message.clone()).unwrap_or_default();
    ensure!(message.contains("are missing there"), "it does not say how much is missing: {message}");
    throughout("nothing moves", HELD_FOR, || async {
        let now = identity(&sandbox.ksc().await?)?;
        ensure!(now == before, "the store was {before:?} and is {now:?}");
        let pods = sandbox.store_pods().await?.len();
        ensure!(pods == usize::try_from(WIDE)?, "{pods} pods are left");
        Ok(())
    })
    .await?;
    sandbox.scale(WIDE).await?;
    let ksc = sandbox.wait_ksc("settled again", NOTICED_WITHIN, expect_settled).await?;
    ensure!(identity(&ksc)? == before, "the store is another one");
    wait_for_writes(&load, 100).await?;
    let summary = load.stop().await.judge(Allowance::NoFailure, 200).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(format!("held with {values} large values; {summary}")))
}

/// Writes until the disks of fewer nodes would be too full; says how many values that took.
async fn fill(sandbox: &Sandbox, load: &Load<ClientStore>, store: &ClientStore) -> Result<u64> {
    let mut written = 0;
    while written < VALUES_MAX {
        let (size, available) =
            (sandbox.node_metric(SIZE_BYTES).await?, sandbox.node_metric(AVAILABLE_BYTES).await?);
        let available = available.values().sum::<u64>();
        let used = size.values().sum::<u64>().saturating_sub(available);
        let smallest = size.values().min().copied().unwrap_or(0);
        if used * 100 >= smallest * u64::try_from(REPLICAS)? * FULL_PERCENT {
            return Ok(written);
        }
        write_large(load, store, written..written + BATCH).await?;
        written += BATCH;
    }
    anyhow::bail!("{VALUES_MAX} large values do not fill the disks")
}
