//! A store that grows: what an operation costs over millions of keys against a few, memory, disk, starts.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::compare::{Operation, System};
use crate::fill::{Filled, fill};
use crate::measure::{Load, measure};
use crate::meter::Meter;
use crate::servers::{Engine, Programs, Servers};
use crate::settle::settle;
use crate::statistics::ratio;
use crate::table::{Table, marked, mib, number, times};
use crate::target::{calls, streams};
use crate::verdict::{self, Bound, Verdict};

const VALUE_BYTES: usize = 100;

#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    #[arg(long, default_value = "sled")]
    engine: Engine,
    #[arg(long, default_value_t = 10_000_000)]
    records: u32,
    /// What a nearly empty store holds.
    #[arg(long, default_value_t = 10_000)]
    few: u32,
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Of one measurement of gets; puts are measured for three times as long, and then until the nodes are quiet, so
    /// that what they put off is counted.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// `storage.cache_bytes` of each node, in MiB.
    #[arg(long, default_value_t = 64)]
    cache_mib: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Growth {
    pub(crate) engine: Engine,
    pub(crate) cache_mib: u64,
    pub(crate) few: u32,
    pub(crate) clients: usize,
    pub(crate) filled: Filled,
    pub(crate) costs: Vec<Cost>,
    /// Of a node, on the average.
    pub(crate) resident_few: f64,
    pub(crate) resident_many: f64,
    /// Of a node, with the log.
    pub(crate) disk_few: f64,
    pub(crate) disk_many: f64,
    pub(crate) stop_seconds: f64,
    pub(crate) start_after_stop_seconds: f64,
    pub(crate) start_after_kill_seconds: f64,
    pub(crate) start_disturbance: f64,
}

/// Of one operation, over random keys of all that there are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cost {
    pub(crate) operation: Operation,
    pub(crate) system: System,
    pub(crate) few: Point,
    pub(crate) many: Point,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Point {
    pub(crate) per_second: f64,
    pub(crate) p99_us: f64,
    pub(crate) server_cpu_us: f64,
    pub(crate) disturbance: f64,
}

const OPERATIONS: [Operation; 2] = [Operation::DurablePut, Operation::Get];
const SYSTEMS: [System; 2] = [System::Calls, System::Stream];

pub(crate) async fn run(programs: &Programs, shape: &Shape) -> Result<Growth> {
    let cache_bytes = (shape.cache_mib << 20).to_string();
    let settings = [("storage.engine", shape.engine.name()), ("storage.cache_bytes", &*cache_bytes)];
    let mut servers = Servers::store(programs, "growth", &settings)?;
    let targets = calls(&servers.channels()?, Operation::Put.levels());
    servers.wait(&targets).await?;
    eprintln!("{}: {} records", shape.engine.name(), shape.few);
    fill(&targets, shape.few, VALUE_BYTES).await?;
    let few = points(&servers, shape, shape.few).await?;
    let (resident_few, disk_few) = (servers.resident_bytes()?, servers.disk_bytes()?);
    eprintln!("{}: {} records", shape.engine.name(), shape.records);
    let targets = streams(servers.channels()?, Operation::Put.levels()).await?;
    let filled = fill(&targets, shape.records, VALUE_BYTES).await?;
    eprintln!("  {:.0} records/s, {} puts were made again", filled.per_second(), filled.repeated);
    drop(targets);
    settle(&servers).await?;
    let many = points(&servers, shape, shape.records).await?;
    settle(&servers).await?;
    let (resident_many, disk_many) = (servers.resident_bytes()?, servers.disk_bytes()?);
    let nodes = servers.each().len() as f64;
    let starts = starts(&mut servers).await?;
    let pairs = each().zip(few).zip(many);
    Ok(Growth {
        engine: shape.engine.clone(),
        cache_mib: shape.cache_mib,
        few: shape.few,
        clients: shape.clients,
        filled,
        costs: pairs
            .map(|(((operation, system), few), many)| Cost { operation, system, few, many })
            .collect(),
        resident_few: resident_few as f64 / nodes,
        resident_many: resident_many as f64 / nodes,
        disk_few: disk_few as f64 / nodes,
        disk_many: disk_many as f64 / nodes,
        stop_seconds: starts.stop.as_secs_f64(),
        start_after_stop_seconds: starts.after_stop.as_secs_f64(),
        start_after_kill_seconds: starts.after_kill.as_secs_f64(),
        start_disturbance: starts.disturbance,
    })
}

fn each() -> impl Iterator<Item = (Operation, System)> {
    OPERATIONS.into_iter().flat_map(|operation| SYSTEMS.map(|system| (operation, system)))
}

/// In the order of [`each`]. Gets come last, of what caches hold by then.
async fn points(servers: &Servers, shape: &Shape, keys: u32) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for (operation, system) in each() {
        let load = Load {
            kind: operation.kind(),
            clients: shape.clients,
            value_bytes: VALUE_BYTES,
            keys,
            time: Duration::from_secs(shape.seconds),
        };
        let point = match operation {
            Operation::DurablePut => {
                point(servers, &Load { time: load.time * 3, ..load }, operation, system).await?
            }
            _ => {
                point(servers, &load, operation, system).await?;
                point(servers, &load, operation, system).await?
            }
        };
        eprintln!(
            "  {} by {}: {:.0}/s, {:.1} us of CPU each",
            operation.name(),
            system.name(),
            point.per_second,
            point.server_cpu_us
        );
        points.push(point);
    }
    Ok(points)
}

/// Counts what the servers do until they are quiet.
async fn point(servers: &Servers, load: &Load, operation: Operation, system: System) -> Result<Point> {
    let levels = operation.levels();
    let sample = match system {
        System::Stream => measure(servers, &streams(servers.channels()?, levels).await?, load).await?,
        _ => measure(servers, &calls(&servers.channels()?, levels), load).await?,
    };
    let before = servers.cpu_time()?;
    settle(servers).await?;
    let put_off = servers.cpu_time()?.saturating_sub(before).as_secs_f64() * 1e6;
    Ok(Point {
        per_second: sample.per_second(),
        p99_us: sample.latency_us(0.99),
        server_cpu_us: sample.cpu_us() + put_off / (sample.latencies.len() as f64).max(1.0),
        disturbance: sample.disturbance(),
    })
}

struct Starts {
    stop: Duration,
    after_stop: Duration,
    after_kill: Duration,
    disturbance: f64,
}

/// Of the first node, while the others serve. The killed one first: a stop would leave it no log to read.
async fn starts(servers: &mut Servers) -> Result<Starts> {
    let meter = Meter::start(servers)?;
    servers.server(0)?.kill()?;
    let after_kill = servers.start_again(0).await?;
    eprintln!("  ready {:.1} s after a kill", after_kill.as_secs_f64());
    let stop = servers.server(0)?.stop()?;
    let after_stop = servers.start_again(0).await?;
    eprintln!("  ready {:.1} s after a stop", after_stop.as_secs_f64());
    Ok(Starts { stop, after_stop, after_kill, disturbance: meter.read(servers)?.disturbance() })
}

/// To the cost in a nearly empty store.
const CPU_RATIO_MAX: f64 = 1.3;
const START_AFTER_STOP_MAX_S: f64 = 5.0;
const START_AFTER_KILL_MAX_S: f64 = 30.0;

impl Growth {
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let engine = self.engine.name();
        let cost = |Cost { operation, system, few, many }: &Cost| {
            let what =
                format!("{engine}: {} by {}, CPU to that of few records", operation.name(), system.name());
            let measured = ratio(many.server_cpu_us, few.server_cpu_us);
            let disturbance = few.disturbance.max(many.disturbance);
            Verdict::new(what, measured, Bound::AtMost(CPU_RATIO_MAX)).under(disturbance)
        };
        let start = |what: &str, seconds, bound| {
            let what = format!("{engine}: seconds until ready after a {what}");
            Verdict::new(what, Some(seconds), Bound::AtMost(bound)).under(self.start_disturbance)
        };
        let starts = [
            start("stop", self.start_after_stop_seconds, START_AFTER_STOP_MAX_S),
            start("kill", self.start_after_kill_seconds, START_AFTER_KILL_MAX_S),
        ];
        self.costs.iter().map(cost).chain(starts).collect()
    }

    pub(crate) fn disturbance(&self) -> f64 {
        let points = self.costs.iter().flat_map(|cost| [cost.few, cost.many]);
        points.map(|point| point.disturbance).fold(self.start_disturbance, f64::max)
    }

    pub(crate) fn tables(&self) -> Vec<Table> {
        vec![verdict::table(&self.verdicts()), self.costs(), self.sizes()]
    }

    fn title(&self, what: &str) -> String {
        let (records, few) = (number(f64::from(self.filled.records), 0), number(f64::from(self.few), 0));
        let (engine, cache) = (self.engine.name(), self.cache_mib);
        format!(
            "{what}: {records} records of {VALUE_BYTES} bytes against {few}, {engine}, a cache of {cache} MiB"
        )
    }

    fn costs(&self) -> Table {
        let heads =
            ["operation", "by", "few: per s", "p99 ms", "CPU µs", "many: per s", "p99 ms", "CPU µs", "× CPU"];
        let mut table = Table::new(&self.title("Operations over all keys"), &heads);
        for Cost { operation, system, few, many } in &self.costs {
            let figures = |point: &Point| {
                [number(point.per_second, 0), number(point.p99_us / 1e3, 2), number(point.server_cpu_us, 1)]
            };
            let names =
                [marked(operation.name(), few.disturbance.max(many.disturbance)), system.name().to_owned()];
            let ratio = [times(ratio(many.server_cpu_us, few.server_cpu_us))];
            table.row(names.into_iter().chain(figures(few)).chain(figures(many)).chain(ratio));
        }
        table
    }

    fn sizes(&self) -> Table {
        let heads = ["what", "few", "many"];
        let mut table = Table::new(&self.title("A node"), &heads);
        let mut row = |what: &str, few: String, many: String| table.row([what.to_owned(), few, many]);
        row("resident MiB", mib(self.resident_few), mib(self.resident_many));
        row("on disk MiB", mib(self.disk_few), mib(self.disk_many));
        row("records/s while filled", String::new(), number(self.filled.per_second(), 0));
        row("s until stopped", String::new(), number(self.stop_seconds, 1));
        let marked = |what| marked(what, self.start_disturbance);
        row(&marked("s until ready after a stop"), String::new(), number(self.start_after_stop_seconds, 1));
        row(&marked("s until ready after a kill"), String::new(), number(self.start_after_kill_seconds, 1));
        table
    }
}
