//! A thousand connections with thousands of requests in flight: memory, latencies, and whether all get their share.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Shape, prepare, store};
use crate::compare::Operation;
use crate::measure::{key, observe};
use crate::proc;
use crate::process::Server;
use crate::servers::{Programs, Servers};
use crate::statistics::{Spread, completed_per_share, jain_index, spread};
use crate::target::{Target as _, calls};
use crate::verdict::{Bound, Verdict};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// After which the nodes have let go of what the connections took.
const REST: Duration = Duration::from_secs(5);

/// What requests may hold by default, and as much again for connections and buffers.
const GROWN_MAX_MIB: f64 = 256.0;
/// 1 where all get the same.
const JAIN_MIN: f64 = 0.95;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Crowd {
    pub(crate) operation: Operation,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    /// Of the largest node.
    pub(crate) resident_before: u64,
    pub(crate) resident_peak: u64,
    pub(crate) resident_after: u64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    pub(crate) failed: u64,
    /// By each connection, for each request that it keeps in flight.
    pub(crate) completed: Spread,
    pub(crate) jain_index: Option<f64>,
    /// What the clients had of one core: near 1 they were what was measured.
    pub(crate) clients_busy: f64,
    pub(crate) disturbance: f64,
}

impl Crowd {
    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |what: &str, measured, bound| {
            let what = format!("{}, {} connections: {what}", self.operation.name(), self.connections);
            Verdict::new(what, measured, bound).under(self.disturbance)
        };
        let grown = self.resident_peak.saturating_sub(self.resident_before) as f64 / f64::from(1 << 20);
        vec![
            verdict("requests that failed", Some(self.failed as f64), Bound::AtMost(0.0)),
            verdict("MiB that the largest node grows by", Some(grown), Bound::AtMost(GROWN_MAX_MIB)),
            verdict("Jain's index of fairness", self.jain_index, Bound::AtLeast(JAIN_MIN)),
        ]
    }
}

pub(super) async fn run(programs: &Programs, shape: &Shape) -> Result<Vec<Crowd>> {
    proc::raise_open_files()?;
    let mut measured = Vec::new();
    for operation in [Operation::DurablePut, Operation::Get] {
        let mut servers = store(programs, &shape.engine)?;
        prepare(&mut servers).await?;
        measured.push(measure_one(&servers, shape, operation).await?);
    }
    Ok(measured)
}

async fn measure_one(servers: &Servers, shape: &Shape, operation: Operation) -> Result<Crowd> {
    let resident_before = largest(servers)?;
    let targets = calls(&servers.connections(shape.connections)?, operation.levels());
    for target in &targets {
        target.get(key(0)).await?;
    }
    let load = shape.load(operation, shape.in_flight);
    let peak = Cell::new(0);
    let watch = async |ends| {
        while Instant::now() < ends {
            peak.set(peak.get().max(largest(servers)?));
            sleep(LOOK).await;
        }
        Ok(())
    };
    let sample = observe(servers, &targets, &load, watch).await?;
    drop(targets);
    sleep(REST).await;
    let completed = completed_per_share(&sample.by_client, shape.connections);
    let crowd = Crowd {
        operation,
        connections: shape.connections,
        in_flight: shape.in_flight,
        resident_before,
        resident_peak: peak.get(),
        resident_after: largest(servers)?,
        per_second: sample.per_second(),
        p50_us: sample.latency_us(0.5),
        p99_us: sample.latency_us(0.99),
        max_us: sample.latencies.max() as f64,
        failed: sample.failed,
        completed: spread(&completed),
        jain_index: jain_index(&completed),
        clients_busy: sample.used.own_share(),
        disturbance: sample.disturbance(),
    };
    eprintln!(
        "  {}: {:.0}/s, p99 {:.0} ms, fairness {:.3}",
        operation.name(),
        crowd.per_second,
        crowd.p99_us / 1e3,
        crowd.jain_index.unwrap_or_default()
    );
    Ok(crowd)
}

fn largest(servers: &Servers) -> Result<u64> {
    let each: Result<Vec<_>> = servers.each().iter().map(Server::resident_bytes).collect();
    Ok(each?.into_iter().max().unwrap_or_default())
}
