//! Scenario 32: the network between nodes is cut, both ways, one way, and between two of three. Whoever is alone
//! refuses or does not know; a majority serves; after healing all nodes hold the same.
//!
//! Clients reach every node all along: port-forwards do not go through what is cut.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use keystore_client::DEFAULT_KEYSPACE;
use keystore_history::Key;

use super::{Ending, wait_for_writes};
use crate::harness::forward::ForwardedStore;
use crate::harness::ksc::{expect_whole, identity, manifest};
use crate::harness::machines::{Host, Place};
use crate::harness::sandbox::Sandbox;
use crate::harness::wait::{Look, until};
use crate::load::{Allowance, Load, SCENARIO, Settings};
use crate::store::{ClientStore, REQUEST_TIMEOUT, Request};

/// Within which a node that is alone knows it, and the others know it to be down: until then requests may wait for
/// answers that do not come.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
const CONVERGED_WITHIN: Duration = Duration::from_secs(90);
/// The client tries for two seconds before it gives up.
const PROBES: usize = 5;
const WRITES_PER_PHASE: usize = 200;

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let Some(host) = Host::find(sandbox).await? else {
        return Ok(Ending::Skipped("needs host access".into()));
    };
    let before = identity(&sandbox.create_ready(&manifest()).await?)?;
    let alone = &sandbox.place("demo-0").await?;
    let first = &sandbox.place("demo-1").await?;
    let second = &sandbox.place("demo-2").await?;
    let connected = sandbox.connect_store().await?;
    let mut scene = Scene {
        load: Load::start(connected.store.clone(), Settings::default()),
        alone: sandbox.connect_store_through(std::slice::from_ref(&alone.pod)).await?,
        others: sandbox.connect_store_through(&[first.pod.clone(), second.pod.clone()]).await?,
        probes: 0,
    };
    wait_for_writes(&scene.load, WRITES_PER_PHASE).await?;

    let cuts = [host.cut_apart(alone, first)?, host.cut_apart(alone, second)?];
    scene.one_alone("cut both ways").await?;
    scene.heal(sandbox, cuts).await?;

    // What it sends is lost; what others send arrives, and is answered into the void.
    let cuts = [host.cut(alone, first)?, host.cut(alone, second)?];
    scene.one_alone("cut one way").await?;
    scene.heal(sandbox, cuts).await?;

    let cuts = host.cut_apart(first, second)?;
    scene.load.note_fault();
    for place in [alone, first, second] {
        scene.wait_served(sandbox, place).await?;
    }
    scene.heal(sandbox, cuts).await?;

    ensure!(identity(&sandbox.ksc().await?)? == before, "the store is another one");
    let Scene { load, .. } = scene;
    let report = load.stop().await;
    let allowance =
        Allowance::AfterFaults { within: NOTICED_WITHIN + REQUEST_TIMEOUT, failures_max: usize::MAX };
    let summary = report.judge(allowance, 4 * WRITES_PER_PHASE).map_err(anyhow::Error::msg)?;
    let keys = sandbox.wait_converged(&report.keys(), CONVERGED_WITHIN).await?;
    Ok(Ending::Passed(format!("{keys} keys the same on every node; {summary}")))
}

struct Scene {
    /// Through all nodes.
    load: Load<ClientStore>,
    alone: ForwardedStore,
    others: ForwardedStore,
    probes: usize,
}

impl Scene {
    /// The majority serves every request; the one that is alone none, once it has noticed.
    async fn one_alone(&mut self, how: &str) -> Result<()> {
        self.load.note_fault();
        self.probes += 1;
        let key = Key::new(DEFAULT_KEYSPACE, format!("alone-{}", self.probes).as_bytes());
        until(format!("{how}: the one that is alone has noticed"), NOTICED_WITHIN, || async {
            let read = self.load.recorder().get(SCENARIO, &self.alone.store, &key).await;
            Ok(if read.is_answered() { Look::NotYet("it answers".into()) } else { Look::Done(()) })
        })
        .await?;
        for probe in 0..PROBES {
            let value = format!("{how} {probe}");
            let request = Request::put(value.as_str());
            let reply = self.load.recorder().ask(SCENARIO, &self.alone.store, &key, &request).await;
            ensure!(!reply.is_done(), "{how}: the minority acknowledged {value}");
            let read = self.load.recorder().get(SCENARIO, &self.alone.store, &key).await;
            ensure!(!read.is_answered(), "{how}: the minority answered {read:?}");
        }
        for probe in 0..PROBES {
            let key = Key::new(DEFAULT_KEYSPACE, format!("served-{}-{probe}", self.probes).as_bytes());
            let reply =
                self.load.recorder().ask(SCENARIO, &self.others.store, &key, &Request::put(how)).await;
            ensure!(reply.is_done(), "{how}: the majority said {reply:?}");
        }
        wait_for_writes(&self.load, WRITES_PER_PHASE).await
    }

    /// Where only two of three do not reach each other, each node still has a majority with the third.
    async fn wait_served(&mut self, sandbox: &Sandbox, place: &Place) -> Result<()> {
        self.probes += 1;
        let through = sandbox.connect_store_through(std::slice::from_ref(&place.pod)).await?;
        let number = self.probes;
        let recorder = self.load.recorder();
        let attempts = AtomicU32::new(0);
        until(format!("{} serves", place.pod), NOTICED_WITHIN, || async {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            let key = Key::new(DEFAULT_KEYSPACE, format!("through-{number}-{attempt}").as_bytes());
            let reply = recorder.ask(SCENARIO, &through.store, &key, &Request::put("through")).await;
            Ok(if reply.is_done() { Look::Done(()) } else { Look::NotYet(format!("{reply:?}")) })
        })
        .await
    }

    /// Undoes the cuts, and goes on when every node serves.
    async fn heal<C>(&mut self, sandbox: &Sandbox, cuts: C) -> Result<()> {
        drop(cuts);
        self.load.note_fault();
        sandbox.wait_ksc("whole", CONVERGED_WITHIN, expect_whole).await?;
        wait_for_writes(&self.load, WRITES_PER_PHASE).await
    }
}
