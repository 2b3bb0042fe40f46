//! When the requests of an open loop are due: evenly spaced, whatever became of earlier ones.

use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    per_second: f64,
}

impl Schedule {
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second }
    }

    /// Since the begin, of the request with this number from 0.
    pub(super) fn due(self, number: u64) -> Duration {
        Duration::from_nanos((number as f64 * 1e9 / self.per_second) as u64)
    }

    /// How many are due by then.
    pub(super) fn due_by(self, elapsed: Duration) -> u64 {
        let mut count = (elapsed.as_secs_f64() * self.per_second) as u64;
        // The product is rounded otherwise than the quotient.
        while self.due(count) <= elapsed {
            count += 1;
        }
        while count > 0 && self.due(count - 1) > elapsed {
            count -= 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_evenly_spaced_from_the_begin_on() {
        let schedule = Schedule::new(4.0);
        let due: Vec<_> = (0..5).map(|number| schedule.due(number).as_millis()).collect();
        assert_eq!(due, [0, 250, 500, 750, 1000]);
        for (ms, count) in [(0, 1), (249, 1), (250, 2), (999, 4), (1000, 5)] {
            assert_eq!(schedule.due_by(Duration::from_millis(ms)), count, "after {ms} ms");
        }
    }

    #[test]
    fn what_is_due_by_a_time_is_what_was_due_before_it_at_every_rate() {
        let day = Duration::from_secs(86_400).as_nanos() as u64;
        for rate in [0.001, 0.3, 1.0, 7.0, 999.9, 12_345.6, 1e6] {
            let schedule = Schedule::new(rate);
            for part in 0..=1000 {
                let elapsed = Duration::from_nanos(day / 1000 * part);
                let count = schedule.due_by(elapsed);
                assert!(
                    schedule.due(count - 1) <= elapsed && schedule.due(count) > elapsed,
                    "{rate}: {count}"
                );
            }
            assert!((schedule.due_by(Duration::from_nanos(day)) as f64 - rate * 86_400.0).abs() <= 1.001);
        }
    }
}
