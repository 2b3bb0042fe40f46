//! The load against a store in memory, which keeps its promises or breaks one on purpose.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use std::sync::atomic::Ordering;

use keystore_client::DEFAULT_KEYSPACE;
use keystore_history::{Action, Promise, ReadOutcome, Rules, Seen, Stamp, WriteOutcome, check, unread_keys};

use super::*;

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
    /// Fails everything for a while, honestly.
    IsAway,
}

/// By key; without a value, a tombstone.
type Records = BTreeMap<Key, (Stamp, Option<String>)>;

#[derive(Clone)]
struct FakeStore {
    records: Arc<Mutex<Records>>,
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

    fn write(&self, key: &Key, value: Option<String>, is_kept: bool) -> WriteOutcome {
        let mut records = self.records.lock().unwrap();
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&self.clock.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        if is_kept {
            records.insert(key.clone(), (Stamp(bytes), value));
        }
        WriteOutcome::Done { stamp: Stamp(bytes), acks: 2 }
    }
}

impl Store for FakeStore {
    async fn get(&self, key: &Key) -> ReadOutcome {
        tokio::task::yield_now().await;
        if self.is(Bug::IsAway) {
            return ReadOutcome::Unanswered("away".into());
        }
        match self.records.lock().unwrap().get(key) {
            Some((stamp, Some(value))) => {
                ReadOutcome::Found(vec![Seen { value: value.as_bytes().to_vec(), stamp: *stamp }])
            }
            Some((_, None)) | None => ReadOutcome::Missing,
        }
    }

    async fn put(&self, key: &Key, value: &str) -> WriteOutcome {
        tokio::task::yield_now().await;
        if self.is(Bug::IsAway) {
            return WriteOutcome::Failed("away".into());
        }
        let outcome = self.write(key, Some(value.to_owned()), !self.is(Bug::LosesWrites));
        if self.is(Bug::AppliesFailed) { WriteOutcome::Failed("refused".into()) } else { outcome }
    }

    async fn delete(&self, key: &Key) -> WriteOutcome {
        tokio::task::yield_now().await;
        if self.is(Bug::IsAway) {
            return WriteOutcome::Failed("away".into());
        }
        self.write(key, None, !self.is(Bug::IgnoresDeletes))
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
    if bug == Bug::IsAway {
        tokio::time::sleep(Duration::from_secs(1)).await;
    } else {
        wait_for_writes(&load, 300).await;
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
    assert!(unread_keys(&report.history).is_empty());
}

#[tokio::test(start_paused = true)]
async fn broken_promises_are_found() {
    let cases = [
        (Bug::LosesWrites, Promise::AcknowledgedIsReadable),
        (Bug::IgnoresDeletes, Promise::DeletedStaysDeleted),
        (Bug::AppliesFailed, Promise::FailedIsNotApplied),
    ];
    for (bug, promise) in cases {
        let report = run(bug).await;
        let broken: BTreeSet<_> =
            check(&report.history, &Rules::default()).iter().map(|violation| violation.promise).collect();
        assert!(broken.contains(&promise), "{promise}: {broken:?}");
        let generous = Allowance::AfterFaults { within: Duration::MAX, failures_max: usize::MAX };
        assert!(report.judge(generous, 0).unwrap_err().contains(&promise.to_string()));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_allowed_after_a_noted_fault_only_and_not_more_than_so_many() {
    let report = run(Bug::IsAway).await;
    let failures = report.failures_beyond(Allowance::NoFailure).len();
    assert!(failures > 10, "{failures}");
    let after = |within, failures_max| Allowance::AfterFaults { within, failures_max };
    let minute = Duration::from_secs(60);
    report.judge(after(minute, failures), 0).unwrap();
    assert_eq!(report.failures_beyond(after(minute, failures - 3)).len(), 3);
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
