//! Twenty clients write one causal key with one context through different nodes: every acknowledged value is a sibling
//! until a write with their context replaces it. Over and over, also while a node dies.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use keystore_client::{Causal, OperationId, WriteOptions};
use keystore_history::{Key, ReadOutcome};
use kube::api::DeleteParams;

use super::Ending;
use crate::harness::forward::ForwardedStore;
use crate::harness::ksc::{expect_whole, manifest, pod_names};
use crate::harness::sandbox::Sandbox;
use crate::load::{Allowance, Load, SCENARIO, Settings, known};
use crate::store::{CAUSAL_KEYSPACE, ClientStore, Known, Reply, Request, Store};

const CLIENTS: usize = 20;
const ROUNDS: usize = 15;
/// In this round a pod is killed.
const KILLED_IN: usize = 5;
const BACK_WITHIN: Duration = Duration::from_secs(120);

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    sandbox.create_ready(&manifest()).await?;
    let connected = sandbox.connect_store().await?;
    let mut stores = Vec::new();
    for pod in pod_names() {
        stores.push(sandbox.connect_store_through(&[pod]).await?);
    }
    // Nobody else writes: all that this scenario does is one history.
    let settings = Settings { clients: 0, ..Settings::default() };
    let mut load = Load::start(connected.store.clone(), settings);
    let (mut acknowledged, mut most) = (0, 0);
    for round in 0..ROUNDS {
        let is_killed = round == KILLED_IN;
        if is_killed {
            load.note_fault();
        }
        let kill = async {
            if is_killed {
                let at_once = DeleteParams::default().grace_period(0);
                sandbox.api::<Pod>().delete("demo-1", &at_once).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let key = Key::new(CAUSAL_KEYSPACE, format!("round-{round}").as_bytes());
        let race =
            Race { load: &load, store: &connected.store, stores: &stores, key: &key, is_calm: !is_killed };
        let (raced, killed) = tokio::join!(race.run(), kill);
        killed?;
        let siblings = raced.with_context(|| format!("round {round}"))?;
        acknowledged += siblings;
        most = most.max(siblings);
    }
    ensure!(most == CLIENTS, "never were all {CLIENTS} acknowledged, at most {most}");
    one_operation_is_one_sibling(&stores).await?;
    sandbox.wait_ksc("whole", BACK_WITHIN, expect_whole).await?;
    let allowance = Allowance::AfterFaults { within: BACK_WITHIN, failures_max: usize::MAX };
    load.stop().await.judge(allowance, acknowledged).map_err(anyhow::Error::msg)?;
    Ok(Ending::Passed(format!("{acknowledged} concurrent values in {ROUNDS} rounds, none lost")))
}

/// One round, on a key of its own.
struct Race<'a> {
    load: &'a Load<ClientStore>,
    /// Through all nodes, and through each.
    store: &'a ClientStore,
    stores: &'a [ForwardedStore],
    key: &'a Key,
    /// True if every request has to succeed.
    is_calm: bool,
}

impl Race<'_> {
    /// Says how many values were acknowledged under one context.
    async fn run(&self) -> Result<usize> {
        self.ask(&Request::put("base")).await?;
        let base = self.read().await?;
        ensure!(base.values == [b"base"], "the first value is not alone: {base:?}");

        let writes = (0..CLIENTS).map(|client| self.write(client, &base));
        let mut acknowledged: Vec<_> = join_all(writes).await.into_iter().flatten().collect();
        let count = acknowledged.len();
        ensure!(
            !self.is_calm || acknowledged.len() == CLIENTS,
            "only {} were acknowledged",
            acknowledged.len()
        );

        let siblings = self.read().await?;
        let lost: Vec<_> = acknowledged.iter().filter(|value| !siblings.values.contains(value)).collect();
        ensure!(lost.is_empty(), "acknowledged, and no siblings: {lost:?}");
        if !acknowledged.is_empty() {
            ensure!(!siblings.values.contains(&b"base".to_vec()), "what all of them replaced is still there");
        }

        // What was unknown may come later, and is then a sibling of this.
        let merged = Request::Put { value: "merged".to_owned(), ttl: None, known: siblings };
        self.ask(&merged).await?;
        let values = self.read().await?.values;
        acknowledged.retain(|value| values.contains(value));
        ensure!(acknowledged.is_empty(), "replaced, and still there: {acknowledged:?}");
        ensure!(values.contains(&b"merged".to_vec()), "what replaced them is not there");
        ensure!(!self.is_calm || values.len() == 1, "{} siblings are left", values.len());
        Ok(count)
    }

    /// The value, if it was acknowledged.
    async fn write(&self, client: usize, base: &Known) -> Option<Vec<u8>> {
        let value = format!("client {client}");
        let request = Request::Put { value: value.clone(), ttl: None, known: base.clone() };
        let through = self.stores.get(client % self.stores.len())?;
        let session = u32::try_from(client).ok()?;
        let reply = self.load.recorder().ask(session, &through.store, self.key, &request).await;
        reply.is_done().then(|| value.into_bytes())
    }

    async fn ask(&self, request: &Request) -> Result<Reply> {
        let reply = self.load.recorder().ask(SCENARIO, self.store, self.key, request).await;
        ensure!(reply.is_done(), "{request:?}: {reply:?}");
        Ok(reply)
    }

    async fn read(&self) -> Result<Known> {
        let reply = self.ask(&Request::Get).await?;
        known(&Request::Get, reply).context("a read without an answer")
    }
}

/// A write that a program sends again through another node, under the same operation id, is one sibling.
async fn one_operation_is_one_sibling(stores: &[ForwardedStore]) -> Result<()> {
    let operation = Some(OperationId(rand::random()));
    for through in stores {
        let options =
            WriteOptions { causal: Some(Causal { context: None, operation }), ..WriteOptions::default() };
        through.store.client().put(CAUSAL_KEYSPACE, "again", "once", options).await?;
    }
    for through in stores {
        let reply = through.store.ask(&Key::new(CAUSAL_KEYSPACE, b"again"), &Request::Get).await;
        let Reply::Read(ReadOutcome::Found(seen), _) = &reply else { bail!("sent three times: {reply:?}") };
        ensure!(seen.len() == 1, "sent three times under one operation id: {reply:?}");
    }
    Ok(())
}
