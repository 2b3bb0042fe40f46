//! The figures that are shown while it goes.

use std::time::Duration;

use super::tally::{Outcomes, Tally};

/// How far something is that is done to so many keys: "writing keys: 400 of 1000, 200/s, 3 s left".
pub(super) fn progress(what: &str, (done, total): (u64, u64), elapsed: Duration) -> String {
    let rate = per_second(done, elapsed);
    let left = match total.saturating_sub(done) as f64 / rate {
        seconds if seconds.is_finite() => format!(", {} left", time(seconds.ceil() as u64)),
        _ => String::new(),
    };
    let percent = done * 100 / total.max(1);
    format!("{what}: {done} of {total} ({percent}%), {}/s{left}", round(rate))
}

/// What was measured since the last figures, and how often in all something was not done.
pub(super) struct Figures<'a> {
    pub recent: &'a Tally,
    pub period: Duration,
    pub total: &'a Tally,
    pub elapsed: Duration,
    pub seconds: Option<u32>,
    /// Requests that are due and wait for a client of this process.
    pub overdue: u64,
    /// Requests that wait for their answers when no more are sent.
    pub waiting: Option<u64>,
}

impl Figures<'_> {
    pub(super) fn line(&self) -> String {
        let Self { recent, period, total, elapsed, seconds, overdue, waiting } = self;
        let of = seconds.map_or_else(String::new, |seconds| format!("/{seconds}"));
        let mut parts = vec![format!("{}{of} s", elapsed.as_secs_f64().round())];
        for (name, recent, total) in [("get", &recent.gets, &total.gets), ("put", &recent.puts, &total.puts)]
        {
            if total.ended() > 0 {
                parts.push(kind(name, recent, *period));
            }
        }
        let sum = |count: fn(&Outcomes) -> u64| count(&total.gets) + count(&total.puts);
        let counts = [
            ("failed", sum(|outcomes| outcomes.failed)),
            ("unknown", sum(|outcomes| outcomes.unknown)),
            ("overloaded", sum(|outcomes| outcomes.overloaded)),
            ("other", sum(|outcomes| outcomes.other)),
            ("overdue", *overdue),
            ("waiting", waiting.unwrap_or(0)),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        parts.extend(counts.map(|(name, count)| format!("{name} {count}")));
        parts.join("  ")
    }
}

fn kind(name: &str, recent: &Outcomes, period: Duration) -> String {
    let rate = round(per_second(recent.done, period));
    if recent.done == 0 {
        return format!("{name} {rate}/s");
    }
    let ms = |quantile| recent.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    format!("{name} {rate}/s p50 {:.2} p99 {:.2} ms", ms(0.5), ms(0.99))
}

pub(super) fn per_second(count: u64, period: Duration) -> f64 {
    match period.as_secs_f64() {
        0.0 => 0.0,
        seconds => count as f64 / seconds,
    }
}

/// Rates below ten have a digit more.
pub(super) fn round(rate: f64) -> String {
    if rate < 9.95 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn time(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tally::{Done, Kind};
    use keystore_client::{Detail, Error, Reason};

    #[test]
    fn progress_says_how_fast_and_how_long_still() {
        for (done, total, seconds, line) in [
            (400, 1000, 2, "writing: 400 of 1000 (40%), 200/s, 3 s left"),
            (0, 1000, 2, "writing: 0 of 1000 (0%), 0.0/s"),
            (1, 1000, 2, "writing: 1 of 1000 (0%), 0.5/s, 34 min left"),
            (1, 100_000, 1, "writing: 1 of 100000 (0%), 1.0/s, 27.8 h left"),
            (1000, 1000, 0, "writing: 1000 of 1000 (100%), 0.0/s"),
        ] {
            assert_eq!(progress("writing", (done, total), Duration::from_secs(seconds)), line);
        }
    }

    fn tally(gets: u64, puts: u64) -> Tally {
        let mut tally = Tally::default();
        for (kind, count) in [(Kind::Get, gets), (Kind::Put, puts)] {
            for ms in 1..=count {
                let done = Ok(Done { bytes: 1, is_missing: false });
                tally.note(kind, Duration::from_millis(ms), &done);
            }
        }
        tally
    }

    fn figures<'a>(recent: &'a Tally, total: &'a Tally) -> Figures<'a> {
        Figures {
            recent,
            period: Duration::from_secs(2),
            total,
            elapsed: Duration::from_millis(3990),
            seconds: Some(10),
            overdue: 0,
            waiting: None,
        }
    }

    #[test]
    fn figures_are_those_of_the_last_moment_and_counts_those_of_all_time() {
        let (recent, mut total) = (tally(100, 0), tally(200, 50));
        let line = |total: &Tally| figures(&recent, total).line();
        assert_eq!(line(&total), "4/10 s  get 50/s p50 50.02 p99 99.01 ms  put 0.0/s");
        let detail = |reason: Reason| Detail { reason, message: String::new(), acks: None, needed: None };
        for error in [
            Error::Failed(detail(Reason::OVERLOADED)),
            Error::Failed(detail(Reason::OVERLOADED)),
            Error::Failed(detail(Reason::DISK_FULL)),
            Error::Unknown(detail(Reason::BROKEN_STREAM)),
        ] {
            total.note(Kind::Put, Duration::ZERO, &Err(error));
        }
        let counts = "failed 1  unknown 1  overloaded 2";
        assert!(line(&total).ends_with(&format!("put 0.0/s  {counts}")), "{}", line(&total));
    }

    #[test]
    fn only_what_there_is_is_shown() {
        let recent = tally(0, 4);
        let line =
            Figures { seconds: None, overdue: 7, waiting: Some(3), ..figures(&recent, &recent) }.line();
        assert_eq!(line, "4 s  put 2.0/s p50 2.00 p99 4.00 ms  overdue 7  waiting 3");
        assert_eq!(figures(&Tally::default(), &Tally::default()).line(), "4/10 s");
    }
}
