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
use tokio::time::{Instant, sleep};

use crate::proc;
use crate::servers::Servers;
use crate::target::Target;

/// Latencies are kept to three digits, up to a minute.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Connections are made and caches filled before anything counts.
const WARM_UP: Duration = Duration::from_millis(700);

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
    pub(crate) time: Duration,
    /// Of the servers, summed.
    pub(crate) cpu: Duration,
    /// To disks, by all servers.
    pub(crate) written: u64,
    /// Of all servers, at the end.
    pub(crate) resident: u64,
    /// Of neither these servers nor this process: what disturbed the measurement.
    pub(crate) others: Duration,
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.time.as_secs_f64()
    }

    /// Server CPU of one operation.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.latencies.len() as f64).max(1.0)
    }

    pub(crate) fn latency_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64
    }

    pub(crate) fn written_per_operation(&self) -> f64 {
        self.written as f64 / (self.latencies.len() as f64).max(1.0)
    }

    /// Others' CPU time, as a share of one core.
    pub(crate) fn disturbance(&self) -> f64 {
        self.others.as_secs_f64() / self.time.as_secs_f64()
    }
}

pub(crate) fn key(number: u32) -> Bytes {
    format!("bench/{number:010}").into()
}

/// Random, so that nothing can be gained by compressing it.
pub(crate) fn value(bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    SmallRng::from_os_rng().fill_bytes(&mut value);
    value.into()
}

/// Writes every key once; `targets` are one for each server.
pub(crate) async fn preload(targets: &[impl Target], load: &Load) -> Result<()> {
    let next = Cell::new(0);
    let value = value(load.value_bytes);
    let workers = (0..64).zip(targets.iter().cycle()).map(async |(_, target)| {
        while next.get() < load.keys {
            let number = next.replace(next.get() + 1);
            target.put(key(number), value.clone()).await?;
        }
        Ok::<_, tonic::Status>(())
    });
    for ended in join_all(workers).await {
        ended?;
    }
    Ok(())
}

struct Counted {
    latencies: Histogram<u64>,
    failed: u64,
    example: Option<tonic::Status>,
}

impl Counted {
    fn new() -> Result<Self> {
        Ok(Self { latencies: Histogram::new_with_max(LATENCY_US_MAX, 3)?, failed: 0, example: None })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmingUp,
    Counting,
    Over,
}

/// Clients take turns over the targets, one for each server. Fails if more than one request in a thousand does.
pub(crate) async fn measure(servers: &Servers, targets: &[impl Target], load: &Load) -> Result<Sample> {
    let phase = Rc::new(Cell::new(Phase::WarmingUp));
    let counted = Rc::new(RefCell::new(Counted::new()?));
    let value = value(load.value_bytes);
    let workers = (0..load.clients).zip(targets.iter().cycle());
    let workers: Vec<_> = workers
        .map(|(_, target)| {
            work(target.clone(), (*load, value.clone()), Rc::clone(&phase), Rc::clone(&counted))
        })
        .map(tokio::task::spawn_local)
        .collect();
    sleep(WARM_UP).await;
    let used = || {
        let own = proc::cpu_time(std::process::id())?;
        anyhow::Ok((proc::machine_busy()?, servers.cpu_time()?, own, servers.written_bytes()?))
    };
    let (begun, before) = (Instant::now(), used()?);
    phase.set(Phase::Counting);
    sleep(load.time).await;
    phase.set(Phase::Over);
    let (time, after, resident) = (begun.elapsed(), used()?, servers.resident_bytes()?);
    for ended in join_all(workers).await {
        ended?;
    }
    let (busy, cpu, own) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    let written = after.3.saturating_sub(before.3);
    let Counted { latencies, failed, example } = counted.replace(Counted::new()?);
    let all = latencies.len() + failed;
    ensure!(failed * 1_000 <= all, "{failed} of {all} requests failed: {example:?}");
    Ok(Sample { latencies, failed, time, cpu, written, resident, others: busy.saturating_sub(cpu + own) })
}

async fn work(
    target: impl Target,
    (load, value): (Load, Bytes),
    phase: Rc<Cell<Phase>>,
    counted: Rc<RefCell<Counted>>,
) {
    let mut random = SmallRng::from_os_rng();
    while phase.get() != Phase::Over {
        let key = key(random.random_range(0..load.keys));
        let begun = Instant::now();
        let result = match load.kind {
            Kind::Put => target.put(key, value.clone()).await,
            Kind::Get => match target.get(key).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(tonic::Status::not_found("a key that was written is not there")),
                Err(status) => Err(status),
            },
        };
        if phase.get() != Phase::Counting {
            continue;
        }
        let mut counted = counted.borrow_mut();
        match result {
            Ok(()) => counted.latencies.saturating_record(begun.elapsed().as_micros() as u64),
            Err(status) => {
                counted.failed += 1;
                counted.example.get_or_insert(status);
            }
        }
    }
}
