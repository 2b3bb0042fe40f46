//! The controller as it runs, with its watches, against an API server and nodes in memory, on a clock that is paused:
//! hours pass in no time.

use std::sync::atomic::AtomicBool;

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{CLUSTER, Duration, Instant, SERVICE, STATEFUL_SET, World, json};
use crate::http::Health;
use crate::run::control;

const BUDGET: &str = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/demo";

struct Running {
    world: World,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Running {
    fn start(world: World) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let is_ready = AtomicBool::new(false).into();
        let health = Health { metrics: world.context.metrics.clone(), is_ready };
        tasks.spawn(control(world.context.clone(), health, stop.clone()));
        Self { world, stop, tasks }
    }

    /// A cluster that was created and left alone.
    async fn at_rest() -> Self {
        let world = World::new(&json!({}));
        world.start_nodes();
        let running = Self::start(world);
        running.until("ready", |world| world.is("Ready").as_deref() == Some("Converged")).await;
        running
    }

    async fn until(&self, what: &str, is_so: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(3600);
        while !is_so(&self.world) {
            assert!(Instant::now() < deadline, "not {what} within an hour: {:#}", self.world.status());
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_cluster_is_looked_at_and_never_written_to() {
    let running = Running::at_rest().await;
    let api = &running.world.api;
    sleep(Duration::from_secs(60)).await;
    let (_, before) = (api.take_writes(), api.get(CLUSTER));
    api.take_requests();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((api.take_writes(), api.get(CLUSTER)), (Vec::new(), before));
    assert!(api.take_requests() > 100, "it still looks");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_of_children_that_are_deleted_or_hidden_by_an_edited_label() {
    let running = Running::at_rest().await;
    let api = &running.world.api;
    for path in [SERVICE, BUDGET, STATEFUL_SET] {
        let begun = Instant::now();
        let before = api.get(path).unwrap()["metadata"]["labels"].clone();
        api.remove(path);
        running.until("made again", |world| world.api.get(path).is_some()).await;
        api.edit(path, |object| object["metadata"]["labels"] = json!({}));
        running.until("put back", |world| world.api.get(path).unwrap()["metadata"]["labels"] == before).await;
        // An idle cluster is looked at every 30 s anyway: it was the watch that told.
        assert!(begun.elapsed() < Duration::from_secs(10), "{path} took {:?}", begun.elapsed());
        running.until("ready", |world| world.is("Ready").is_some()).await;
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_whose_history_is_gone_begins_anew_and_misses_nothing() {
    let running = Running::at_rest().await;
    let api = &running.world.api;
    api.compact();
    sleep(Duration::from_secs(5)).await;
    // Something that only a watch on resources can tell.
    let other = CLUSTER.replace("/demo", "/other");
    let metadata = json!({"name": "other", "namespace": "shop"});
    api.put(
        &other,
        json!({"apiVersion": "keystore.dev/v1alpha1", "kind": "KeyStoreCluster", "metadata": metadata, "spec": {}}),
    );
    running.until("looked at", |world| world.api.get(&other).unwrap()["status"].is_object()).await;
    let begun = Instant::now();
    api.remove(SERVICE);
    running.until("made again", |world| world.api.get(SERVICE).is_some()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_failures_is_answered_with_patience_and_then_forgotten() {
    let running = Running::at_rest().await;
    let api = &running.world.api;
    api.fail_with(Some(StatusCode::INTERNAL_SERVER_ERROR));
    api.take_requests();
    sleep(Duration::from_secs(1800)).await;
    let during = api.take_requests();
    // At most a minute between two tries, and at least half of one once it has doubled up to there.
    assert!((30..=100).contains(&during), "{during} requests in half an hour");
    api.fail_with(None);
    api.remove(SERVICE);
    let begun = Instant::now();
    running.until("made again", |world| world.api.get(SERVICE).is_some()).await;
    assert!(begun.elapsed() <= Duration::from_secs(70), "{:?}", begun.elapsed());
    running.until("ready", |world| world.is("Ready").is_some()).await;
    assert!(
        running.world.context.metrics.encode().unwrap().contains("reconcile_errors_total{step=\"observe\"}")
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_deleted_leaves_no_series_behind() {
    let running = Running::at_rest().await;
    let series = |world: &World| world.context.metrics.encode().unwrap().contains("name=\"demo\"");
    assert!(series(&running.world));
    running.world.api.remove(CLUSTER);
    running.world.api.collect_children();
    running.until("forgotten", |world| !series(world)).await;
    running.world.api.take_writes();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(running.world.api.take_writes(), Vec::<String>::new(), "nothing is made anew");
    running.stop().await;
}
