//! Clients that write down what they asked and were told, and the judge of it.
//!
//! They share a few registers and a few keys with siblings, and have keys of their own that are written once, deleted,
//! or expire. What was promised is not decided here: [`keystore_history`] judges simulation, processes and Kubernetes
//! alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keystore_history::{
    Action, Context, Expiry, History, Key, KeyRange, Operation, Put, ReadOutcome, Removal, Rules, Scan,
    ScanOutcome, Seen, Stamp, WriteOutcome, check,
};
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{CAUSAL, Cluster, NodeProcess, wait_until};

/// Every history of a test program has one clock, so that they may be judged together.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
static SESSIONS: AtomicU32 = AtomicU32::new(1);

/// What a client waits for at most.
const TIMEOUT: Duration = Duration::from_secs(2);
/// By how much the clocks of nodes may differ in these tests, and what a restart may shift: in microseconds.
const SKEW_US: u64 = 1_500_000;
const TTL_MS: u64 = 700;

fn now_us() -> u64 {
    u64::try_from(ORIGIN.elapsed().as_micros()).unwrap()
}

pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    clients: JoinSet<History>,
}

impl Load {
    /// `name` keeps the keys of different loads apart.
    pub fn start(name: &str, nodes: &[NodeProcess], clients_per_node: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for node in nodes {
            for _ in 0..clients_per_node {
                let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
                let client = Client {
                    name: name.to_owned(),
                    session,
                    random: SmallRng::seed_from_u64(session.into()),
                    client: node.client(),
                    contexts: BTreeMap::new(),
                    history: History::default(),
                    written: 0,
                };
                clients.spawn(client.run(Arc::clone(&stop), Arc::clone(&acknowledged)));
            }
        }
        Self { stop, acknowledged, clients }
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Until so many more writes have been acknowledged.
    pub async fn progress(&self, writes: usize) {
        let goal = self.acknowledged() + writes;
        wait_until("writes are acknowledged", || async { (self.acknowledged() >= goal).then_some(()) }).await;
    }

    pub async fn stop(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = History::default();
        for history in self.clients.join_all().await {
            append(&mut all, history);
        }
        all
    }
}

/// All nodes are killed at once under the load, and started again; what the one of this index then says is judged.
pub async fn kill_all_under(load: Load, cluster: &mut Cluster, asked: usize) -> History {
    cluster.nodes.iter_mut().for_each(NodeProcess::kill);
    let mut history = load.stop().await;
    cluster.nodes.iter_mut().for_each(NodeProcess::start);
    cluster.wait_until_all_serve().await;
    judge(&[&cluster.nodes[asked]], &mut history).await;
    history
}

pub fn append(all: &mut History, more: History) {
    all.operations.extend(more.operations);
    all.scans.extend(more.scans);
}

/// What a client has seen of a key with siblings.
#[derive(Debug, Clone, Default)]
struct Known {
    values: Vec<Vec<u8>>,
    token: Bytes,
}

struct Client {
    name: String,
    session: u32,
    random: SmallRng,
    client: KeyStoreClient<Channel>,
    contexts: BTreeMap<Key, Known>,
    history: History,
    written: u64,
}

impl Client {
    async fn run(mut self, stop: Arc<AtomicBool>, acknowledged: Arc<AtomicUsize>) -> History {
        while !stop.load(Ordering::Relaxed) {
            let is_served = self.step().await;
            let last = self.history.operations.last();
            if last.is_some_and(|operation| operation.acknowledged().is_some()) {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            if !is_served {
                // Its node is down: a pause, or this would spin.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.history
    }

    /// Asks for one thing; false if it was not served.
    async fn step(&mut self) -> bool {
        let kind = self.random.random_range(0..20);
        let key = match kind {
            0..5 | 9 => self.own_key(),
            5..9 => self.register(),
            10..13 => self.sibling(),
            _ => self.some_key(),
        };
        match kind {
            9 => self.put(key, Some(TTL_MS)).await,
            0..13 => self.put(key, None).await,
            13 => self.delete(key).await,
            14..19 => self.get(key).await,
            _ => self.scan().await,
        }
    }

    fn own_key(&mut self) -> Key {
        self.written += 1;
        self.key(&format!("own-{}-{}", self.session, self.written))
    }

    fn key(&self, name: &str) -> Key {
        Key::new("default", format!("{}/{name}", self.name).as_bytes())
    }

    fn register(&mut self) -> Key {
        let number = self.random.random_range(0..6);
        self.key(&format!("register-{number}"))
    }

    fn sibling(&mut self) -> Key {
        let number = self.random.random_range(0..4);
        Key { keyspace: CAUSAL.to_owned(), ..self.key(&format!("sibling-{number}")) }
    }

    fn some_key(&mut self) -> Key {
        match self.random.random_range(0..4) {
            0 => self.register(),
            1 => self.sibling(),
            _ => {
                let number = self.random.random_range(0..=self.written);
                self.key(&format!("own-{}-{number}", self.session))
            }
        }
    }

    /// Notes an operation; false if it was not served.
    fn note(&mut self, key: Key, asked_at: u64, action: Action) -> bool {
        let times = (asked_at, now_us());
        let operation = Operation::new(self.session, key, times, action);
        let is_served = operation.error().is_none();
        self.history.operations.push(operation);
        is_served
    }

    /// With the context of what it saw last, every other time.
    fn context_for(&mut self, key: &Key) -> Option<Known> {
        let is_given = key.keyspace == CAUSAL && self.random.random();
        self.contexts.get(key).filter(|known| is_given && !known.token.is_empty()).cloned()
    }

    async fn put(&mut self, key: Key, ttl_ms: Option<u64>) -> bool {
        self.written += 1;
        let value = format!("{}-{}-{}", self.session, self.written, "x".repeat(80)).into_bytes();
        let known = self.context_for(&key).unwrap_or_default();
        let request = v1::PutRequest {
            keyspace: key.keyspace.clone(),
            key: key.key.clone().into(),
            value: value.clone().into(),
            context: known.token.clone(),
            ttl_ms: ttl_ms.unwrap_or_default(),
            ..v1::PutRequest::default()
        };
        let asked_at = now_us();
        let answer = self.client.put(timed(request)).await.map(tonic::Response::into_inner);
        let outcome = outcome(answer.as_ref().map(|answer| (&answer.stamp, answer.acks)));
        if let Ok(answer) = answer
            && key.keyspace == CAUSAL
        {
            let values = known.values.iter().cloned().chain([value.clone()]).collect();
            self.contexts.insert(key.clone(), Known { values, token: answer.context });
        }
        let expiry = ttl_ms.map(|ttl_ms| Expiry {
            not_before: (asked_at + ttl_ms * 1000).saturating_sub(SKEW_US),
            not_after: now_us() + ttl_ms * 1000 + SKEW_US,
        });
        let context = Context::Values(known.values);
        let put = Put { expiry, context, ..Put::new(&value, outcome) };
        self.note(key, asked_at, Action::Put(put))
    }

    async fn delete(&mut self, key: Key) -> bool {
        let known = self.context_for(&key);
        let request = v1::DeleteRequest {
            keyspace: key.keyspace.clone(),
            key: key.key.clone().into(),
            context: known.as_ref().map(|known| known.token.clone()).unwrap_or_default(),
            ..v1::DeleteRequest::default()
        };
        let asked_at = now_us();
        let answer = self.client.delete(timed(request)).await.map(tonic::Response::into_inner);
        let outcome = outcome(answer.as_ref().map(|answer| (&answer.stamp, answer.acks)));
        let context = known.map_or(Context::WhateverIsThere, |known| Context::Values(known.values));
        self.note(key, asked_at, Action::Delete(Removal { context, outcome }))
    }

    async fn get(&mut self, key: Key) -> bool {
        let asked_at = now_us();
        match get(&mut self.client, &key).await {
            Ok(answer) => {
                let found = seen(&answer.values);
                if key.keyspace == CAUSAL {
                    let values = found.iter().map(|seen| seen.value.clone()).collect();
                    self.contexts.insert(key.clone(), Known { values, token: answer.context });
                }
                self.note(key, asked_at, Action::Get(read(found)))
            }
            Err(status) => self.note(key, asked_at, Action::Get(ReadOutcome::Unanswered(status.to_string()))),
        }
    }

    async fn scan(&mut self) -> bool {
        let keyspace = if self.random.random() { CAUSAL } else { "default" };
        let prefix = format!("{}/", self.name).into_bytes();
        let asked_at = now_us();
        let request = v1::ScanRequest {
            keyspace: keyspace.to_owned(),
            prefix: prefix.clone().into(),
            ..v1::ScanRequest::default()
        };
        let outcome = match scan(&mut self.client, request).await {
            Ok(entries) => ScanOutcome::Found(entries),
            Err(status) => ScanOutcome::Unanswered(status.to_string()),
        };
        let is_served = matches!(outcome, ScanOutcome::Found(_));
        self.history.scans.push(Scan {
            session: self.session,
            keyspace: keyspace.to_owned(),
            range: KeyRange::prefix(&prefix),
            asked_at,
            answered_at: now_us(),
            deadline: None,
            is_promised: true,
            outcome,
        });
        is_served
    }
}

fn timed<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(TIMEOUT);
    request
}

async fn get(client: &mut KeyStoreClient<Channel>, key: &Key) -> Result<v1::GetResponse, Status> {
    let request = v1::GetRequest {
        keyspace: key.keyspace.clone(),
        key: key.key.clone().into(),
        ..v1::GetRequest::default()
    };
    Ok(client.get(timed(request)).await?.into_inner())
}

/// In the order of keys: the store's own order is not what these histories judge.
async fn scan(
    client: &mut KeyStoreClient<Channel>,
    request: v1::ScanRequest,
) -> Result<Vec<(Vec<u8>, Vec<Seen>)>, Status> {
    let mut request = timed(request);
    request.set_timeout(TIMEOUT * 5);
    let mut pages = client.scan(request).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(page) = pages.message().await? {
        let page = page.entries.into_iter();
        entries.extend(page.map(|entry| (entry.key.to_vec(), seen(&entry.values))));
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

fn seen(values: &[v1::Value]) -> Vec<Seen> {
    let one = |value: &v1::Value| Seen { value: value.value.to_vec(), stamp: stamp(&value.stamp) };
    values.iter().map(one).collect()
}

fn read(found: Vec<Seen>) -> ReadOutcome {
    if found.is_empty() { ReadOutcome::Missing } else { ReadOutcome::Found(found) }
}

fn stamp(bytes: &[u8]) -> Stamp {
    Stamp(bytes.try_into().unwrap())
}

/// What a status says about a write: nothing was applied only where the store says so.
fn outcome(answer: Result<(&Bytes, u32), &Status>) -> WriteOutcome {
    match answer {
        Ok((of, acks)) => WriteOutcome::Done { stamp: stamp(of), acks },
        Err(status) if is_told_failed(status) => WriteOutcome::Failed(status.to_string()),
        Err(status) => WriteOutcome::Unknown { acks: 0, why: status.to_string() },
    }
}

/// An UNAVAILABLE without details comes from this side's transport, which cannot tell.
fn is_told_failed(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::FailedPrecondition)
        && !status.details().is_empty()
}

/// Reads every key of a history through the given nodes, and fails on whatever breaks a promise.
pub async fn judge(nodes: &[&NodeProcess], history: &mut History) {
    let keys: BTreeSet<Key> = history.operations.iter().map(|operation| operation.key.clone()).collect();
    assert!(
        history.operations.iter().any(|operation| operation.acknowledged().is_some()),
        "nothing was acknowledged"
    );
    for node in nodes {
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let client = node.client();
        for key in &keys {
            let (asked_at, outcome) = wait_until("a read has its quorum", || async {
                let asked_at = now_us();
                let answer = get(&mut client.clone(), key).await.ok()?;
                Some((asked_at, read(seen(&answer.values))))
            })
            .await;
            let times = (asked_at, now_us());
            history.operations.push(Operation::new(session, key.clone(), times, Action::Get(outcome)));
        }
    }
    let rules = Rules {
        causal_keyspaces: BTreeSet::from([CAUSAL.to_owned()]),
        sees_deletes: false,
        write_quorum: Some(2),
    };
    let violations = check(history, &rules);
    assert!(violations.is_empty(), "{} broken promises:\n{violations:#?}", violations.len());
}

/// The same through every node that runs.
pub async fn judge_everywhere(cluster: &Cluster, history: &mut History) {
    let running: Vec<_> = cluster.nodes.iter().filter(|node| node.is_running()).collect();
    judge(&running, history).await;
}
