//! One measurement: a closed loop of clients against one system, for some seconds.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::future::join_all;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until};

use crate::meter::{Meter, Used};
use crate::servers::Servers;
use crate::target::{Failed, Target};

/// Latencies are kept to three digits, up to a minute.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Connections are made and caches filled before anything counts.
pub(crate) const WARM_UP: Duration = Duration::from_millis(700);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Put,
    Get,
}

/// What the clients do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) clients: usize,
    pub(crate) value_bytes: usize,
    pub(crate) keys: u32,
    pub(crate) time: Duration,
}

/// What came of it.
pub(crate) struct Sample {
    /// In microseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) failed: u64,
    pub(crate) example: Option<Failed>,
    /// How many operations each client has completed.
    pub(crate) by_client: Vec<u64>,
    pub(crate) used: Used,
    /// One after the other, as far as they are whole: what disturbs a measurement comes and goes.
    pub(crate) seconds: Vec<Second>,
}

/// A second of a measurement.
pub(crate) struct Second {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) used: Used,
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.used.time.as_secs_f64()
    }

    /// Server CPU of one operation.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.used.cpu.as_secs_f64() * 1e6 / (self.latencies.len() as f64).max(1.0)
    }

    pub(crate) fn latency_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64
    }

    pub(crate) fn written_per_operation(&self) -> f64 {
        self.used.written as f64 / (self.latencies.len() as f64).max(1.0)
    }

    pub(crate) fn disturbance(&self) -> f64 {
        self.used.disturbance()
    }

    /// Fails if more than one request in a thousand did.
    pub(crate) fn check(self) -> Result<Self> {
        let Self { failed, example, .. } = &self;
        let all = self.latencies.len() + failed;
        ensure!(failed * 1_000 <= all, "{failed} of {all} requests failed: {example:?}");
        Ok(self)
    }
}

pub(crate) fn key(number: u32) -> Bytes {
    format!("bench/{number:010}").into()
}

/// Of each key.
pub(crate) const KEY_BYTES: usize = "bench/0123456789".len();

/// Random, so that nothing can be gained by compressing it.
pub(crate) fn value(bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    SmallRng::from_os_rng().fill_bytes(&mut value);
    value.into()
}

pub(crate) fn new_histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(LATENCY_US_MAX, 3)?)
}

struct Counted {
    latencies: Histogram<u64>,
    /// Of this second.
    recent: Histogram<u64>,
    failed: u64,
    example: Option<Failed>,
    by_client: Vec<u64>,
}

impl Counted {
    fn new(clients: usize) -> Result<Self> {
        Ok(Self {
            latencies: new_histogram()?,
            recent: new_histogram()?,
            failed: 0,
            example: None,
            by_client: vec![0; clients],
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmingUp,
    Counting,
    Over,
}

/// Fails if more than one request in a thousand does.
pub(crate) async fn measure(servers: &Servers, targets: &[impl Target], load: &Load) -> Result<Sample> {
    observe(servers, targets, load, async |_ends| Ok(())).await?.check()
}

/// Clients take turns over the targets, while something happens that ends in time: it begins when counting does.
pub(crate) async fn observe(
    servers: &Servers,
    targets: &[impl Target],
    load: &Load,
    meanwhile: impl AsyncFnOnce(Instant) -> Result<()>,
) -> Result<Sample> {
    let phase = Rc::new(Cell::new(Phase::WarmingUp));
    let counted = Rc::new(RefCell::new(Counted::new(load.clients)?));
    let value = value(load.value_bytes);
    let workers = (0..load.clients).zip(targets.iter().cycle());
    let workers: Vec<_> = workers
        .map(|(client, target)| {
            let worker = Worker { client, load: *load, value: value.clone(), phase: Rc::clone(&phase) };
            worker.work(target.clone(), Rc::clone(&counted))
        })
        .map(tokio::task::spawn_local)
        .collect();
    sleep_until(Instant::now() + WARM_UP).await;
    let meter = Meter::start(servers)?;
    phase.set(Phase::Counting);
    let ends = Instant::now() + load.time;
    let mut seconds = Vec::new();
    let ended = async {
        meanwhile(ends).await?;
        sleep_until(ends).await;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = ended => ended?,
        never = tell_seconds_apart(servers, &counted, &mut seconds) => never?,
    }
    phase.set(Phase::Over);
    let used = meter.read(servers)?;
    for ended in join_all(workers).await {
        ended?;
    }
    let Counted { latencies, failed, example, by_client, .. } = counted.replace(Counted::new(0)?);
    if let Some(example) = &example {
        eprintln!("  {failed} requests failed, the first one with {example}");
    }
    Ok(Sample { latencies, failed, example, by_client, used, seconds })
}

/// Goes on until it is dropped.
async fn tell_seconds_apart(
    servers: &Servers,
    counted: &RefCell<Counted>,
    seconds: &mut Vec<Second>,
) -> Result<()> {
    loop {
        let meter = Meter::start(servers)?;
        sleep(SECOND).await;
        let used = meter.read(servers)?;
        let latencies = std::mem::replace(&mut counted.borrow_mut().recent, new_histogram()?);
        seconds.push(Second { latencies, used });
    }
}

/// A client, which does one thing after the other.
struct Worker {
    client: usize,
    load: Load,
    value: Bytes,
    phase: Rc<Cell<Phase>>,
}

impl Worker {
    async fn work(self, target: impl Target, counted: Rc<RefCell<Counted>>) {
        let Self { client, load, value, phase } = self;
        let mut random = SmallRng::from_os_rng();
        while phase.get() != Phase::Over {
            let begun = Instant::now();
            let result = request(&target, &load, key(random.random_range(0..load.keys)), &value).await;
            if phase.get() != Phase::Counting {
                continue;
            }
            let mut counted = counted.borrow_mut();
            match result {
                Ok(()) => {
                    let latency_us = begun.elapsed().as_micros() as u64;
                    counted.latencies.saturating_record(latency_us);
                    counted.recent.saturating_record(latency_us);
                    counted.by_client.get_mut(client).into_iter().for_each(|count| *count += 1);
                }
                Err(failed) => {
                    counted.failed += 1;
                    counted.example.get_or_insert(failed);
                }
            }
        }
    }
}

/// A get that finds nothing has failed.
pub(crate) async fn request(
    target: &impl Target,
    load: &Load,
    key: Bytes,
    value: &Bytes,
) -> Result<(), Failed> {
    match load.kind {
        Kind::Put => target.put(key, value.clone()).await,
        Kind::Get => match target.get(key).await? {
            true => Ok(()),
            false => Err(Failed::not_found()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_have_the_length_that_is_counted_with() {
        assert_eq!(key(0).len(), KEY_BYTES);
        assert_eq!(key(u32::MAX).len(), KEY_BYTES);
    }
}
