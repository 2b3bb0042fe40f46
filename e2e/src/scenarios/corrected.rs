//! A store that is created with a mistake says what is wrong, and starts as soon as it is corrected, without anybody
//! deleting a pod.

use std::time::Duration;

use anyhow::Result;
use keystore_crds::{ConditionType, KeyStoreCluster};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Ending;
use crate::harness::ksc::{NAME, condition, manifest};
use crate::harness::sandbox::Sandbox;

const SAID_WITHIN: Duration = Duration::from_secs(120);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let mut mistaken = manifest();
    mistaken["spec"]["config"] = json!({"log": {"levle": "debug"}});
    sandbox.create_ksc(&mistaken).await?;
    sandbox
        .wait_ksc("told of its mistake", SAID_WITHIN, |ksc| {
            let ready = condition(ksc, ConditionType::Ready).map_or("", |ready| ready.message.as_str());
            if ready.contains("levle") { Ok(()) } else { Err(format!("Ready says {ready:?}")) }
        })
        .await?;
    let correction = Patch::Merge(json!({"spec": {"config": null}}));
    sandbox.api::<KeyStoreCluster>().patch(NAME, &PatchParams::default(), &correction).await?;
    sandbox.wait_ready().await?;
    Ok(Ending::Passed("a setting that does not exist was named, and taken back".to_owned()))
}
