//! What `/metrics` says. Counters that requests touch are found once and kept; everything else is read when asked.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

pub const PREFIX: &str = "keystore";

/// Seconds: from a read out of memory to the longest deadline.
const DURATION_BUCKETS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
enum OperationLabel {
    get,
    put,
    delete,
    scan,
}

/// What clients ask for, be it a call of its own or an item of a batch or a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Get,
    Put,
    Delete,
    Scan,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Get, Self::Put, Self::Delete, Self::Scan];

    fn label(self) -> OperationLabel {
        match self {
            Self::Get => OperationLabel::get,
            Self::Put => OperationLabel::put,
            Self::Delete => OperationLabel::delete,
            Self::Scan => OperationLabel::scan,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
enum OutcomeLabel {
    done,
    failed,
    unknown,
    deadline_exceeded,
    invalid,
    not_ready,
    /// The client went away before its answer.
    cancelled,
}

const OUTCOMES: [OutcomeLabel; 7] = [
    OutcomeLabel::done,
    OutcomeLabel::failed,
    OutcomeLabel::unknown,
    OutcomeLabel::deadline_exceeded,
    OutcomeLabel::invalid,
    OutcomeLabel::not_ready,
    OutcomeLabel::cancelled,
];

fn outcome_of(code: Code) -> OutcomeLabel {
    match code {
        Code::Ok => OutcomeLabel::done,
        Code::Unavailable | Code::ResourceExhausted => OutcomeLabel::failed,
        Code::DeadlineExceeded => OutcomeLabel::deadline_exceeded,
        Code::InvalidArgument | Code::NotFound => OutcomeLabel::invalid,
        Code::FailedPrecondition => OutcomeLabel::not_ready,
        _ => OutcomeLabel::unknown,
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: OperationLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: OperationLabel,
    outcome: OutcomeLabel,
}

/// Counts and times client requests.
#[derive(Debug, Clone)]
pub struct RequestMetrics {
    of_kind: Arc<[KindMetrics; 4]>,
}

#[derive(Debug)]
struct KindMetrics {
    /// In the order of [`OUTCOMES`].
    ended: [Counter; 7],
    duration: Histogram,
}

impl RequestMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let ended = Family::<RequestLabels, Counter>::default();
        let durations =
            Family::<OperationLabels, Histogram>::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
        let of_kind = Kind::ALL.map(|kind| KindMetrics {
            ended: OUTCOMES.map(|outcome| {
                ended.get_or_create_owned(&RequestLabels { operation: kind.label(), outcome })
            }),
            duration: durations.get_or_create_owned(&OperationLabels { operation: kind.label() }),
        });
        registry.register(
            "requests",
            "Client requests by how they ended; those in batches and sessions each by itself",
            ended,
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a client request's arrival to its answer",
            Unit::Seconds,
            durations,
        );
        Self { of_kind: Arc::new(of_kind) }
    }

    pub fn start(&self, kind: Kind) -> RequestTimer {
        RequestTimer { metrics: self.clone(), kind, started: Instant::now(), ended: OutcomeLabel::cancelled }
    }
}

/// Counts the request when dropped, as cancelled unless it was stopped.
#[derive(Debug)]
pub struct RequestTimer {
    metrics: RequestMetrics,
    kind: Kind,
    started: Instant,
    ended: OutcomeLabel,
}

impl RequestTimer {
    pub fn stop(mut self, code: Code) {
        self.ended = outcome_of(code);
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        let [get, put, delete, scan] = &*self.metrics.of_kind;
        let metrics = match self.kind {
            Kind::Get => get,
            Kind::Put => put,
            Kind::Delete => delete,
            Kind::Scan => scan,
        };
        let position = OUTCOMES.iter().position(|outcome| *outcome == self.ended);
        if let Some(counter) = position.and_then(|position| metrics.ended.get(position)) {
            counter.inc();
        }
        metrics.duration.observe(self.started.elapsed().as_secs_f64());
    }
}

/// The registry with what does not change while the process runs. What is ours goes below [`PREFIX`].
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    start.set(started.as_secs_f64());
    // Without our prefix: dashboards know it under this name.
    registry.register_with_unit(
        "process_start_time",
        "When the process started, since the Unix epoch",
        Unit::Seconds,
        start,
    );
    registry.sub_registry_with_prefix(PREFIX).register(
        "build",
        "The version that runs",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );
    registry
}
