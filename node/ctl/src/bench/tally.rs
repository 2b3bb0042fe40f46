//! What became of requests. Each has exactly one outcome; tallies of threads and of moments add up.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use keystore_client::{Error, Reason};

/// Latencies are kept to three digits, up to an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Put,
}

/// What a request that was done has brought.
pub(super) struct Done {
    /// Of the values that it has read or written.
    pub bytes: u64,
    /// True of a get of a key that does not exist.
    pub is_missing: bool,
}

/// What became of the requests of one kind.
#[derive(Debug, Clone)]
pub(super) struct Outcomes {
    /// Of those that were done, in microseconds.
    pub latencies: Histogram<u64>,
    pub done: u64,
    /// Among those done.
    pub missing: u64,
    pub bytes: u64,
    /// The store had too much to do already, and has applied nothing.
    pub overloaded: u64,
    pub failed: u64,
    /// Writes that may be applied.
    pub unknown: u64,
    /// Refused for another reason.
    pub other: u64,
    /// By reason, of all that were not done.
    pub errors: BTreeMap<String, Errors>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Errors {
    pub count: u64,
    pub first: Error,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub gets: Outcomes,
    pub puts: Outcomes,
    /// Those of both kinds that were for the most popular key, if one is.
    pub hottest: Outcomes,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            latencies: Histogram::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are valid"),
            done: 0,
            missing: 0,
            bytes: 0,
            overloaded: 0,
            failed: 0,
            unknown: 0,
            other: 0,
            errors: BTreeMap::new(),
        }
    }
}

impl Outcomes {
    fn note(&mut self, latency: Duration, result: &Result<Done, Error>) {
        match result {
            Ok(Done { bytes, is_missing }) => {
                self.done += 1;
                self.bytes += bytes;
                self.missing += u64::from(*is_missing);
                let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
                self.latencies.saturating_record(us);
            }
            Err(error) => self.note_error(error),
        }
    }

    fn note_error(&mut self, error: &Error) {
        let count = match error {
            Error::Unknown(_) | Error::DeadlineExceeded { sent_write: true, .. } => &mut self.unknown,
            _ if *error.reason() == Reason::OVERLOADED => &mut self.overloaded,
            Error::Failed(_) | Error::Connect(_) => &mut self.failed,
            Error::DeadlineExceeded { sent_write: false, .. } => &mut self.failed,
            Error::Refused(_) | Error::BadRequest(_) => &mut self.other,
        };
        *count += 1;
        let errors = Errors { count: 0, first: error.clone() };
        self.errors.entry(error.reason().to_string()).or_insert(errors).count += 1;
    }

    /// How many have ended, however.
    pub(super) fn ended(&self) -> u64 {
        self.done + self.overloaded + self.failed + self.unknown + self.other
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self { latencies, done, missing, bytes, overloaded, failed, unknown, other: refused, errors } =
            other;
        self.latencies.add(latencies).expect("the bounds are the same");
        self.done += done;
        self.missing += missing;
        self.bytes += bytes;
        self.overloaded += overloaded;
        self.failed += failed;
        self.unknown += unknown;
        self.other += refused;
        for (reason, Errors { count, first }) in errors {
            let errors = Errors { count: 0, first: first.clone() };
            self.errors.entry(reason.clone()).or_insert(errors).count += count;
        }
    }
}

impl Tally {
    pub(super) fn note(&mut self, kind: Kind, latency: Duration, result: &Result<Done, Error>) {
        match kind {
            Kind::Get => self.gets.note(latency, result),
            Kind::Put => self.puts.note(latency, result),
        }
    }

    pub(super) fn note_hottest(&mut self, latency: Duration, result: &Result<Done, Error>) {
        self.hottest.note(latency, result);
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self { gets, puts, hottest } = other;
        self.gets.add(gets);
        self.puts.add(puts);
        self.hottest.add(hottest);
    }

    /// How many have ended, however.
    pub(super) fn ended(&self) -> u64 {
        self.gets.ended() + self.puts.ended()
    }

    /// Why most of those that were not done were not.
    pub(super) fn most_frequent_error(&self) -> Option<&Error> {
        let errors = self.gets.errors.values().chain(self.puts.errors.values());
        errors.max_by_key(|errors| errors.count).map(|errors| &errors.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_client::Detail;

    fn detail(reason: Reason) -> Detail {
        Detail { message: format!("because of {reason}"), reason, acks: None, needed: None }
    }

    fn done(bytes: u64) -> Result<Done, Error> {
        Ok(Done { bytes, is_missing: bytes == 0 })
    }

    #[test]
    fn every_request_has_one_outcome() {
        let timeout =
            |sent_write| Error::DeadlineExceeded { sent_write, detail: detail(Reason::DEADLINE_EXCEEDED) };
        type Count = fn(&Outcomes) -> u64;
        let cases: [(Error, Count); 8] = [
            (Error::Failed(detail(Reason::QUORUM_UNREACHABLE)), |outcomes| outcomes.failed),
            (Error::Failed(detail(Reason::OVERLOADED)), |outcomes| outcomes.overloaded),
            (Error::Connect(detail(Reason::CANNOT_CONNECT)), |outcomes| outcomes.failed),
            (Error::Unknown(detail(Reason::BROKEN_STREAM)), |outcomes| outcomes.unknown),
            // A later attempt's word does not undo an earlier one.
            (Error::Unknown(detail(Reason::OVERLOADED)), |outcomes| outcomes.unknown),
            (timeout(true), |outcomes| outcomes.unknown),
            (timeout(false), |outcomes| outcomes.failed),
            (Error::Refused(detail(Reason::NOT_INITIALIZED)), |outcomes| outcomes.other),
        ];
        for (error, count) in cases {
            let mut tally = Tally::default();
            tally.note(Kind::Put, Duration::ZERO, &Err(error.clone()));
            assert_eq!((count(&tally.puts), tally.ended(), tally.puts.done), (1, 1, 0), "{error}");
            assert_eq!(tally.puts.latencies.len(), 0);
            assert_eq!(tally.most_frequent_error(), Some(&error));
        }
    }

    #[test]
    fn tallies_add_up() {
        let failed = |message: &str| {
            Err(Error::Failed(Detail { message: message.to_owned(), ..detail(Reason::DISK_FULL) }))
        };
        let mut one = Tally::default();
        one.note(Kind::Get, Duration::from_millis(1), &done(10));
        one.note(Kind::Get, Duration::from_millis(3), &done(0));
        one.note(Kind::Put, Duration::from_millis(9), &failed("first"));
        let mut other = Tally::default();
        other.note(Kind::Get, Duration::from_millis(2), &done(5));
        other.note_hottest(Duration::from_millis(2), &done(5));
        other.note(Kind::Put, Duration::from_millis(9), &failed("second"));
        let mut total = Tally::default();
        total.add(&one);
        total.add(&other);
        total.add(&Tally::default());
        assert_eq!((total.gets.done, total.gets.missing, total.gets.bytes), (3, 1, 15));
        assert_eq!((total.puts.failed, total.ended(), total.hottest.done), (2, 5, 1));
        assert_eq!(total.gets.latencies.len(), 3);
        let max = total.gets.latencies.max();
        assert!((3000..3010).contains(&max), "{max}");
        let expected = Errors { count: 2, first: failed("first").err().unwrap() };
        assert_eq!(total.puts.errors, BTreeMap::from([("DISK_FULL".to_owned(), expected)]));
    }

    #[test]
    fn a_latency_beyond_all_bounds_is_still_counted() {
        let mut tally = Tally::default();
        tally.note(Kind::Get, Duration::from_secs(86_400), &done(1));
        assert_eq!(tally.gets.latencies.len(), 1);
        assert!(tally.gets.latencies.max() >= LATENCY_US_MAX);
    }
}
