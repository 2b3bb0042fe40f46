//! The load against a store in memory, which keeps its promises or breaks one on purpose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use keystore_client::{Context, DEFAULT_KEYSPACE};
use keystore_history::{Promise, ReadOutcome, ScanOutcome, Seen, Stamp, WriteOutcome, check, unread_keys};

use super::*;
use crate::store::{Known, Reply, Request};

/// What the store does wrong, once it is told to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// Acknowledges writes that it does not keep.
    LosesWrites,
    /// Acknowledges deletes that it does not keep.
    IgnoresDeletes,
    /// Applies writes and says that they failed.
    AppliesFailed,
    /// Shows values for ever.
    NeverExpires,
    /// Keeps one value of a causal key.
    LosesSiblings,
    /// Leaves out a key that is there.
    CutsScans,
    /// Fails everything for a while, honestly.
    IsAway,
}

/// One key: its values with their stamps, none where it was deleted, each with the time at which it expires.
type Record = Vec<(String, Stamp, Option<Instant>)>;

#[derive(Clone)]
struct FakeStore {
    records: Arc<Mutex<BTreeMap<Key, Record>>>,
    clock: Arc<AtomicU64>,
    bug: Bug,
    is_broken: Arc<AtomicBool>,
}

impl FakeStore {
    fn new(bug: Bug) -> Self {
        Self { records: Arc::default(), clock: Arc::default(), bug, is_broken: Arc::default() }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == bug && self.is_broken.load(Ordering::SeqCst)
    }

    fn read(&self, key: &Key) -> (ReadOutcome, Option<Context>) {
        let mut records = self.records.lock().unwrap();
        let record = records.entry(key.clone()).or_default();
        if !self.is(Bug::NeverExpires) {
            record.retain(|(_, _, ends)| ends.is_none_or(|ends| Instant::now() < ends));
        }
        let context =
            serde_json::to_vec(&record.iter().map(|(value, ..)| value).collect::<Vec<_>>()).unwrap();
        let context = (key.keyspace == CAUSAL_KEYSPACE).then(|| Context::from_bytes(context));
        let seen =
            |(value, stamp, _): &(String, Stamp, _)| Seen { value: value.clone().into(), stamp: *stamp };
        let seen: Vec<_> = record.iter().map(seen).collect();
        (if seen.is_empty() { ReadOutcome::Missing } else { ReadOutcome::Found(seen) }, context)
    }

    fn write(&self, key: &Key, value: Option<&str>, ttl: Option<Duration>, known: &Known) -> Reply {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&self.clock.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        let stamp = Stamp(bytes);
        let is_ignored =
            self.is(Bug::LosesWrites) && value.is_some() || self.is(Bug::IgnoresDeletes) && value.is_none();
        if !is_ignored {
            let mut records = self.records.lock().unwrap();
            let record = records.entry(key.clone()).or_default();
            let is_causal = key.keyspace == CAUSAL_KEYSPACE && !self.is(Bug::LosesSiblings);
            match &known.context {
                Some(context) if is_causal => {
                    let replaced: Vec<String> = serde_json::from_slice(context.as_bytes()).unwrap();
                    record.retain(|(value, ..)| !replaced.contains(value));
                }
                None if is_causal && value.is_some() => {}
                _ => record.clear(),
            }
            record.extend(value.map(|value| (value.to_owned(), stamp, ttl.map(|ttl| Instant::now() + ttl))));
        }
        Reply::Written(WriteOutcome::Done { stamp, acks: 2 }, None)
    }
}

impl Store for FakeStore {
    async fn ask(&self, key: &Key, request: &Request) -> Reply {
        tokio::task::yield_now().await;
        if self.is(Bug::IsAway) {
            return match request {
                Request::Get => Reply::Read(ReadOutcome::Unanswered("away".into()), None),
                _ => Reply::Written(WriteOutcome::Failed("away".into()), None),
            };
        }
        let reply = match request {
            Request::Get => {
                let (outcome, context) = self.read(key);
                return Reply::Read(outcome, context);
            }
            Request::Put { value, ttl, known } => self.write(key, Some(value), *ttl, known),
            Request::Delete { known } => return self.write(key, None, None, known),
        };
        if self.is(Bug::AppliesFailed) {
            return Reply::Written(WriteOutcome::Failed("refused".into()), None);
        }
        reply
    }

    async fn batch(&self, requests: &[(Key, Request)]) -> Vec<Reply> {
        futures::future::join_all(requests.iter().map(|(key, request)| self.ask(key, request))).await
    }

    async fn scan(&self, keyspace: &str, prefix: &[u8]) -> ScanOutcome {
        tokio::task::yield_now().await;
        if self.is(Bug::IsAway) {
            return ScanOutcome::Unanswered("away".into());
        }
        let keys: Vec<_> = self.records.lock().unwrap().keys().cloned().collect();
        let is_asked = |key: &Key| key.keyspace == keyspace && key.key.starts_with(prefix);
        let mut found = Vec::new();
        for key in keys.into_iter().filter(is_asked) {
            if let (ReadOutcome::Found(seen), _) = self.read(&key) {
                found.push((key.key, seen));
            }
        }
        if self.is(Bug::CutsScans) {
            found.pop();
        }
        ScanOutcome::Found(found)
    }
}

/// Time is tokio's and paused: a pause between requests takes none.
async fn wait_for_writes(load: &Load<FakeStore>, more: usize) {
    let wanted = load.acknowledged() + more;
    tokio::time::timeout(Duration::from_secs(3600), async {
        while load.acknowledged() < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

async fn run(bug: Bug) -> Report {
    let store = FakeStore::new(bug);
    let settings = Settings { seed: 7, read_back_within: Duration::ZERO, ..Settings::default() };
    let mut load = Load::start(store.clone(), settings);
    wait_for_writes(&load, 300).await;
    load.note_fault();
    store.is_broken.store(true, Ordering::SeqCst);
    match bug {
        Bug::IsAway => tokio::time::sleep(Duration::from_secs(1)).await,
        // Longer than any value lives.
        Bug::NeverExpires => tokio::time::sleep(Duration::from_secs(45)).await,
        _ => wait_for_writes(&load, 300).await,
    }
    store.is_broken.store(false, Ordering::SeqCst);
    wait_for_writes(&load, 300).await;
    load.stop().await
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_its_promises_passes() {
    let report = run(Bug::None).await;
    let summary = report.judge(Allowance::NoFailure, 900).unwrap();
    assert!(summary.reads_answered > 500, "{summary}");
    let contended = Key::new(DEFAULT_KEYSPACE, b"contended-0");
    let of_kind =
        |kind: fn(&Action) -> bool| report.history.operations.iter().filter(|op| kind(&op.action)).count();
    assert!(of_kind(|action| matches!(action, Action::Delete(_))) > 10, "deletes are part of the load");
    assert!(
        report.history.operations.iter().filter(|op| op.key == contended).count() > 10,
        "so are contended keys"
    );
    let siblings =
        of_kind(|action| matches!(action, Action::Get(ReadOutcome::Found(seen)) if seen.len() > 1));
    assert!(siblings > 10, "so are siblings");
    assert!(
        of_kind(|action| matches!(action, Action::Put(put) if put.expiry.is_some())) > 10,
        "values expire"
    );
    assert!(report.history.scans.len() > 10, "keys are scanned");
    assert!(unread_keys(&report.history).is_empty());
    assert_eq!(report.lost_writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn broken_promises_are_found() {
    let cases = [
        (Bug::LosesWrites, Promise::AcknowledgedIsReadable),
        (Bug::IgnoresDeletes, Promise::DeletedStaysDeleted),
        (Bug::AppliesFailed, Promise::FailedIsNotApplied),
        (Bug::NeverExpires, Promise::ExpiredIsGone),
        (Bug::LosesSiblings, Promise::AcknowledgedIsReadable),
        (Bug::CutsScans, Promise::AcknowledgedIsReadable),
    ];
    for (bug, promise) in cases {
        let report = run(bug).await;
        let broken: BTreeSet<_> =
            check(&report.history, &report.rules()).iter().map(|violation| violation.promise).collect();
        assert!(broken.contains(&promise), "{promise}: {broken:?}");
        assert_eq!(report.lost_writes() > 0, broken.contains(&Promise::AcknowledgedIsReadable), "{broken:?}");
        let generous = Allowance::AfterFaults { within: Duration::MAX, failures_max: usize::MAX };
        assert!(report.judge(generous, 0).unwrap_err().contains("promises broken"));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_allowed_after_a_noted_fault_only_and_not_more_than_so_many() {
    let report = run(Bug::IsAway).await;
    // The operations of a batch are one request.
    let requests = |allowance| {
        let failures = report.failures_beyond(allowance).into_iter();
        failures.map(|failed| (failed.session, failed.asked_at)).collect::<BTreeSet<_>>().len()
    };
    let failures = requests(Allowance::NoFailure);
    assert!(failures > 10, "{failures}");
    assert!(failures < report.failures_beyond(Allowance::NoFailure).len(), "some were batches");
    let after = |within, failures_max| Allowance::AfterFaults { within, failures_max };
    let minute = Duration::from_secs(60);
    report.judge(after(minute, failures), 0).unwrap();
    assert_eq!(requests(after(minute, failures - 3)), 3);
    assert!(
        !report.failures_beyond(after(Duration::ZERO, failures)).is_empty(),
        "what began after the window"
    );
    assert!(report.judge(Allowance::NoFailure, 0).unwrap_err().contains("requests failed that should not"));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_hardly_wrote_proves_nothing() {
    let report = run(Bug::None).await;
    assert!(report.judge(Allowance::NoFailure, usize::MAX).unwrap_err().contains("wanted"));
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_in_between_is_found_by_reading_again() {
    let mut report = run(Bug::None).await;
    let store = FakeStore::new(Bug::None);
    let count = report.read_again(&store).await;
    assert!(count > 300, "{count}");
    let message = report.judge(Allowance::NoFailure, 0).unwrap_err();
    assert!(message.contains("every acknowledged write is readable"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_load_grows_heavier_and_lighter_while_it_runs() {
    let hour = Duration::from_secs(3600);
    let load = Load::start(FakeStore::new(Bug::None), Settings { pause: hour, ..Settings::default() });
    let acknowledged_within_a_minute = async || {
        let before = load.acknowledged();
        tokio::time::sleep(Duration::from_secs(60)).await;
        load.acknowledged() - before
    };
    assert!(acknowledged_within_a_minute().await < 100);
    load.set_pause(Duration::from_millis(20));
    assert!(acknowledged_within_a_minute().await > 1000, "a long pause is cut short");
    load.set_pause(hour);
    assert!(acknowledged_within_a_minute().await < 100);
    assert_eq!(load.failed(), 0);
}
