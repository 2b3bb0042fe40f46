//! One engine: a store is filled, watched, scanned, killed, stopped and started.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Shape;
use super::idle::{self, Idle};
use super::scan::{self, Scan};
use crate::fill::{Filled, fill};
use crate::measure::KEY_BYTES;
use crate::meter::Meter;
use crate::probe;
use crate::process::Server;
use crate::servers::{Engine, NODES, Programs, Servers};
use crate::settle::settle;
use crate::target::{Levels, Read, Write, calls, streams};

const VALUE_BYTES: usize = 100;
const LARGE_VALUE_BYTES: usize = 1_024;
/// The most that a node takes: a store that is filled for this makes no checkpoint.
const LOG_ONLY: (&str, &str) = ("storage.checkpoint_bytes", "17179869184");
/// As durable as the store can: what writes cost is to be seen.
const LEVELS: Levels = Levels { read: Read::Quorum, write: Write::Synced };

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EngineFigures {
    pub(crate) engine: Engine,
    pub(crate) writes: Vec<Written>,
    pub(crate) memory: Memory,
    pub(crate) idle: Idle,
    pub(crate) scans: Vec<Scan>,
    pub(crate) starts: Vec<Start>,
}

/// What durable puts have put on disks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Written {
    pub(crate) filled: Filled,
    /// By one node, which holds every record, for a byte of keys and values; until the store was quiet again.
    pub(crate) per_byte: f64,
    /// What one node has on disk then, space kept for the log included, for a byte of keys and values.
    pub(crate) disk_per_byte: f64,
    pub(crate) is_quiet: bool,
    pub(crate) disturbance: f64,
}

/// Of a node.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    pub(crate) empty_bytes: f64,
    pub(crate) filled_bytes: f64,
    pub(crate) per_million_bytes: f64,
}

/// Of one node, while the others serve.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Start {
    pub(crate) after: String,
    pub(crate) records: u32,
    /// That the node had made since it was empty; only what was killed has a log to read.
    pub(crate) checkpoints: Option<f64>,
    /// Until it was ready.
    pub(crate) seconds: f64,
    pub(crate) disturbance: f64,
}

impl Start {
    /// `None` of an empty store.
    pub(crate) fn seconds_per_million(&self) -> Option<f64> {
        (self.records > 0).then(|| self.seconds * 1e6 / f64::from(self.records))
    }
}

impl EngineFigures {
    pub(super) fn disturbance(&self) -> f64 {
        let writes = self.writes.iter().map(|written| written.disturbance);
        let scans = self.scans.iter().map(|scan| scan.disturbance);
        let starts = self.starts.iter().map(|start| start.disturbance);
        writes.chain(scans).chain(starts).fold(self.idle.disturbance, f64::max)
    }
}

pub(super) async fn measure(programs: &Programs, shape: &Shape, engine: &Engine) -> Result<EngineFigures> {
    let Shape { records, large_records, seconds, idle_seconds, .. } = *shape;
    eprintln!("{}: {records} records of {VALUE_BYTES} bytes", engine.name());
    let mut servers = store(programs, engine, &[]).await?;
    let mut starts = vec![start_stopped(&mut servers, "a stop, of an empty store", 0).await?];
    let (empty, checkpoints_before) = (resident(&servers)?, checkpoints(&servers).await?);
    let small = write(&servers, records, VALUE_BYTES).await?;
    let memory = Memory::of(empty, resident(&servers)?, records);
    let scans = scan::measure(&servers, records, seconds).await?;
    settle(&servers).await?;
    let pids: Vec<_> = servers.each().iter().filter_map(Server::pid).collect();
    let idle = idle::watch(&pids, idle_seconds).await?;
    let start = start_killed(&mut servers, "a kill, after checkpoints", records, checkpoints_before).await?;
    starts.push(start);
    starts.push(start_stopped(&mut servers, "a stop", records).await?);
    drop(servers);

    eprintln!("{}: {records} records of {VALUE_BYTES} bytes, in the log alone", engine.name());
    let mut servers = store(programs, engine, &[LOG_ONLY]).await?;
    let checkpoints_before = checkpoints(&servers).await?;
    fill(&streams(servers.channels()?, LEVELS).await?, records, VALUE_BYTES).await?;
    let start = start_killed(&mut servers, "a kill, all in the log", records, checkpoints_before).await?;
    starts.push(start);
    drop(servers);

    eprintln!("{}: {large_records} records of {LARGE_VALUE_BYTES} bytes", engine.name());
    let servers = store(programs, engine, &[]).await?;
    let large = write(&servers, large_records, LARGE_VALUE_BYTES).await?;
    Ok(EngineFigures { engine: engine.clone(), writes: vec![small, large], memory, idle, scans, starts })
}

async fn store(programs: &Programs, engine: &Engine, settings: &[(&str, &str)]) -> Result<Servers> {
    let settings: Vec<_> = [("storage.engine", engine.name())].iter().chain(settings).copied().collect();
    let mut servers = Servers::store(programs, engine.name(), &settings)?;
    let targets = calls(&servers.channels()?, LEVELS);
    servers.wait(&targets).await?;
    Ok(servers)
}

async fn write(servers: &Servers, records: u32, value_bytes: usize) -> Result<Written> {
    let meter = Meter::start(servers)?;
    let filled = fill(&streams(servers.channels()?, LEVELS).await?, records, value_bytes).await?;
    let is_quiet = settle(servers).await?;
    let used = meter.read(servers)?;
    let disk = servers.disk_bytes()?;
    let put = f64::from(records) * (KEY_BYTES + value_bytes) as f64 * NODES as f64;
    let (per_byte, disk_per_byte) = (used.written as f64 / put, disk as f64 / put);
    eprintln!("  {:.0} puts/s, {per_byte:.2} bytes written for each", filled.per_second());
    Ok(Written { filled, per_byte, disk_per_byte, is_quiet, disturbance: used.disturbance() })
}

/// On the average.
fn resident(servers: &Servers) -> Result<f64> {
    Ok(servers.resident_bytes()? as f64 / servers.each().len() as f64)
}

impl Memory {
    fn of(empty_bytes: f64, filled_bytes: f64, records: u32) -> Self {
        let per_million_bytes = (filled_bytes - empty_bytes) * 1e6 / f64::from(records);
        Self { empty_bytes, filled_bytes, per_million_bytes }
    }
}

/// By the first node, since it was started.
async fn checkpoints(servers: &Servers) -> Result<f64> {
    let http = servers.each().first().and_then(|server| server.http).context("a node has pages")?;
    probe::metric(http, "keystore_storage_checkpoints_total").await
}

async fn start_stopped(servers: &mut Servers, after: &str, records: u32) -> Result<Start> {
    servers.server(0)?.stop()?;
    start(servers, after, records, None).await
}

async fn start_killed(
    servers: &mut Servers,
    after: &str,
    records: u32,
    checkpoints_before: f64,
) -> Result<Start> {
    let checkpoints = checkpoints(servers).await? - checkpoints_before;
    servers.server(0)?.kill()?;
    start(servers, after, records, Some(checkpoints)).await
}

/// Of the first node, which has ended.
async fn start(servers: &mut Servers, after: &str, records: u32, checkpoints: Option<f64>) -> Result<Start> {
    let meter = Meter::start(servers)?;
    let seconds = servers.start_again(0).await?.as_secs_f64();
    let disturbance = meter.read(servers)?.disturbance();
    eprintln!("  ready {seconds:.2} s after {after}");
    Ok(Start { after: after.to_owned(), records, checkpoints, seconds, disturbance })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_for_a_million_keys() {
        let Memory { per_million_bytes, .. } = Memory::of(30e6, 80e6, 500_000);
        assert_eq!(per_million_bytes, 100e6);
    }

    #[test]
    fn a_start_is_told_for_a_million_records_unless_there_are_none() {
        let start = |records| Start {
            after: "a kill".to_owned(),
            records,
            checkpoints: None,
            seconds: 2.0,
            disturbance: 0.0,
        };
        assert_eq!(start(500_000).seconds_per_million(), Some(4.0));
        assert_eq!(start(0).seconds_per_million(), None);
    }
}
