//! Requests that arrive at a rate of their own, whatever becomes of those before them: how a store meets more than it
//! can do. A closed loop never shows that, since its clients wait.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::measure::{Load, key, new_histogram, request, value};
use crate::meter::{Meter, Used};
use crate::servers::Servers;
use crate::statistics::arrivals_due;
use crate::target::{Failed, Target};

/// How finely arrivals are spread.
const TICK: Duration = Duration::from_millis(1);
/// Until the store is as full as it gets, before anything counts.
const FILL_UP: Duration = Duration::from_secs(3);
/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was counted between two moments; the latencies in microseconds, from the arrival of the request.
pub(crate) struct Counted {
    pub(crate) offered: u64,
    pub(crate) served: Histogram<u64>,
    /// For overload, with nothing applied.
    pub(crate) refused: Histogram<u64>,
    pub(crate) failed: u64,
    pub(crate) example: Option<Failed>,
}

pub(crate) struct Offered {
    pub(crate) counted: Counted,
    /// Of all requests that were ever made: those that got no answer.
    pub(crate) unanswered: u64,
    pub(crate) used: Used,
}

impl Counted {
    fn new() -> Result<Self> {
        let (served, refused) = (new_histogram()?, new_histogram()?);
        Ok(Self { offered: 0, served, refused, failed: 0, example: None })
    }

    fn note(&mut self, result: Result<(), Failed>, latency: Duration) {
        let latency_us = latency.as_micros() as u64;
        match result {
            Ok(()) => self.served.saturating_record(latency_us),
            Err(failed) if failed.is_overloaded() => self.refused.saturating_record(latency_us),
            Err(failed) => {
                self.failed += 1;
                self.example.get_or_insert(failed);
            }
        }
    }
}

/// State that the requests under way share.
struct Shared {
    counted: Counted,
    is_counting: bool,
    under_way: u64,
}

/// Over these targets in turn. Of the load, the number of clients means nothing.
pub(crate) async fn offer(
    servers: &Servers,
    targets: &[impl Target],
    load: &Load,
    per_second: f64,
) -> Result<Offered> {
    let shared = Rc::new(RefCell::new(Shared { counted: Counted::new()?, is_counting: false, under_way: 0 }));
    let mut arrivals =
        Arrivals { targets: targets.iter().cycle(), load: *load, shared, value: value(load.value_bytes) };
    arrivals.offer_for(per_second, FILL_UP).await;
    let meter = Meter::start(servers)?;
    arrivals.shared.borrow_mut().is_counting = true;
    arrivals.offer_for(per_second, load.time).await;
    arrivals.shared.borrow_mut().is_counting = false;
    let used = meter.read(servers)?;
    let gives_up = Instant::now() + PATIENCE;
    while arrivals.shared.borrow().under_way > 0 && Instant::now() < gives_up {
        sleep(TICK).await;
    }
    let mut shared = arrivals.shared.borrow_mut();
    let counted = std::mem::replace(&mut shared.counted, Counted::new()?);
    Ok(Offered { counted, unanswered: shared.under_way, used })
}

struct Arrivals<'a, T> {
    targets: std::iter::Cycle<std::slice::Iter<'a, T>>,
    load: Load,
    shared: Rc<RefCell<Shared>>,
    value: Bytes,
}

impl<T: Target> Arrivals<'_, T> {
    async fn offer_for(&mut self, per_second: f64, time: Duration) {
        let mut random = SmallRng::from_os_rng();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (begun, mut sent) = (Instant::now(), 0);
        while begun.elapsed() < time {
            ticks.tick().await;
            let due = arrivals_due(begun.elapsed().min(time).as_secs_f64(), per_second);
            for _ in sent..due {
                self.send(key(random.random_range(0..self.load.keys)));
            }
            sent = due;
        }
    }

    fn send(&mut self, key: Bytes) {
        let Some(target) = self.targets.next().cloned() else { return };
        let (load, value, shared) = (self.load, self.value.clone(), Rc::clone(&self.shared));
        let mut counts = shared.borrow_mut();
        counts.under_way += 1;
        if counts.is_counting {
            counts.counted.offered += 1;
        }
        drop(counts);
        let begun = Instant::now();
        tokio::task::spawn_local(async move {
            let result = request(&target, &load, key, &value).await;
            let mut shared = shared.borrow_mut();
            shared.under_way -= 1;
            if shared.is_counting {
                shared.counted.note(result, begun.elapsed());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use keystore_proto::client::reason;
    use keystore_proto::v1;

    use super::*;

    #[test]
    fn what_is_served_refused_and_failed_is_told_apart() {
        let mut counted = Counted::new().unwrap();
        let failure = |code: tonic::Code, reason: &str| -> Failed {
            v1::Failure { code: code.into(), reason: reason.to_owned(), ..v1::Failure::default() }.into()
        };
        counted.note(Ok(()), Duration::from_micros(50));
        counted.note(Ok(()), Duration::from_micros(70));
        counted
            .note(Err(failure(tonic::Code::ResourceExhausted, reason::OVERLOADED)), Duration::from_micros(9));
        counted
            .note(Err(failure(tonic::Code::ResourceExhausted, reason::DISK_FULL)), Duration::from_micros(5));
        let Counted { served, refused, failed, example, .. } = counted;
        assert_eq!((served.len(), served.max()), (2, 70));
        assert_eq!((refused.len(), refused.max()), (1, 9));
        assert_eq!(failed, 1);
        assert!(example.unwrap().to_string().contains(reason::DISK_FULL));
    }
}
