//! Fills servers with records: every key once, with progress for people where it takes long.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::measure::{key, value};
use crate::target::{Failed, Target};

const CLIENTS: usize = 256;
/// A put that fails is made again: a load of minutes is not given up for a node that is busy for a moment.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(200);
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filled {
    pub(crate) records: u32,
    pub(crate) value_bytes: usize,
    pub(crate) seconds: f64,
    /// Puts that failed and were made again.
    pub(crate) repeated: u64,
}

impl Filled {
    pub(crate) fn per_second(&self) -> f64 {
        f64::from(self.records) / self.seconds
    }
}

/// Writes every key once; `targets` are one for each server.
pub(crate) async fn fill(targets: &[impl Target], records: u32, value_bytes: usize) -> Result<Filled> {
    let (begun, shown) = (Instant::now(), Cell::new(Instant::now()));
    let (next, repeated) = (Cell::new(0), Cell::new(0));
    let value = value(value_bytes);
    let workers = (0..CLIENTS).zip(targets.iter().cycle()).map(async |(_, target)| {
        while next.get() < records {
            let number = next.replace(next.get() + 1);
            for attempt in 1..=ATTEMPTS {
                match target.put(key(number), value.clone()).await {
                    Ok(()) => break,
                    Err(failed) if attempt == ATTEMPTS => return Err(failed),
                    Err(_) => repeated.set(repeated.get() + 1),
                }
                sleep(PAUSE).await;
            }
            if shown.get().elapsed() >= PROGRESS {
                shown.set(Instant::now());
                show(next.get(), records, begun.elapsed());
            }
        }
        Ok::<_, Failed>(())
    });
    for ended in join_all(workers).await {
        ended?;
    }
    Ok(Filled { records, value_bytes, seconds: begun.elapsed().as_secs_f64(), repeated: repeated.get() })
}

fn show(done: u32, all: u32, took: Duration) {
    let per_second = f64::from(done) / took.as_secs_f64();
    let left = f64::from(all - done) / per_second;
    eprintln!("  {done} of {all} records, {per_second:.0}/s, {left:.0} s to go");
}
