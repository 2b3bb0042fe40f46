//! Writers that note what was acknowledged, and the check that all of it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{Cluster, NodeProcess, wait_until};

/// One writer's own keys: unique ones, each written once, and one that is written again and again.
#[derive(Debug)]
pub struct History {
    writer: String,
    /// Numbers of the unique keys whose write was acknowledged.
    acknowledged: Vec<u64>,
    /// The last acknowledged and the last attempted number under the key that is overwritten.
    last_acknowledged: Option<u64>,
    last_attempted: u64,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    writers: JoinSet<History>,
}

impl Load {
    /// `name` keeps the keys of different loads apart.
    pub fn start(name: &str, nodes: &[NodeProcess], writers_per_node: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut writers = JoinSet::new();
        for (index, node) in nodes.iter().enumerate() {
            for writer in 0..writers_per_node {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                let writer = format!("{name}-{index}-{writer}");
                writers.spawn(write(node.client(), writer, stop, acknowledged));
            }
        }
        Self { stop, acknowledged, writers }
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Until so many more writes have been acknowledged.
    pub async fn progress(&self, writes: usize) {
        let goal = self.acknowledged() + writes;
        wait_until("writes are acknowledged", || async { (self.acknowledged() >= goal).then_some(()) }).await;
    }

    pub async fn stop(self) -> Vec<History> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await
    }
}

async fn write(
    mut client: KeyStoreClient<Channel>,
    writer: String,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> History {
    let mut history =
        History { writer, acknowledged: Vec::new(), last_acknowledged: None, last_attempted: 0 };
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let overwritten = number % 4 == 3;
        let request = v1::PutRequest {
            key: key(&history.writer, (!overwritten).then_some(number)).into(),
            value: value(number).into(),
            ..v1::PutRequest::default()
        };
        if overwritten {
            history.last_attempted = number;
        }
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(2));
        match client.put(request).await {
            Ok(_) if overwritten => history.last_acknowledged = Some(number),
            Ok(_) => history.acknowledged.push(number),
            // Its node is down: a pause, or this would spin.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        }
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    history
}

fn key(writer: &str, number: Option<u64>) -> String {
    match number {
        Some(number) => format!("{writer}/{number}"),
        None => format!("{writer}/overwritten"),
    }
}

fn value(number: u64) -> String {
    format!("{number}-{}", "x".repeat(100))
}

/// Reads everything that was acknowledged through the given node, and fails on what is missing. Returns how many
/// writes were checked.
pub async fn check(node: &NodeProcess, histories: &[History]) -> usize {
    let mut missing = Vec::new();
    let mut checked = 0;
    for history in histories {
        for number in &history.acknowledged {
            let key = key(&history.writer, Some(*number));
            if node.get_when_possible(&key).await != Some(value(*number)) {
                missing.push(key);
            }
            checked += 1;
        }
        if let Some(acknowledged) = history.last_acknowledged {
            let key = key(&history.writer, None);
            let found = node.get_when_possible(&key).await;
            let number = found.and_then(|value| value.split('-').next()?.parse::<u64>().ok());
            if !number.is_some_and(|number| (acknowledged..=history.last_attempted).contains(&number)) {
                missing.push(format!("{key}: {number:?} found, {acknowledged} acknowledged"));
            }
            checked += 1;
        }
    }
    assert!(missing.is_empty(), "{} acknowledged writes are missing: {missing:?}", missing.len());
    assert!(checked > 0, "nothing was acknowledged");
    checked
}

/// The same through every node.
pub async fn check_everywhere(cluster: &Cluster, histories: &[History]) {
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        check(node, histories).await;
    }
}
