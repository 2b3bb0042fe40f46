//! What clients notice while data moves: a store grows by a node and shrinks again, under load, against the same load
//! while nothing moves.

use std::io::Read as _;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::compare::Operation;
use crate::fill::fill;
use crate::measure::{Load, Sample, observe};
use crate::probe;
use crate::servers::{Engine, NODES, Programs, Servers};
use crate::settle::settle;
use crate::statistics::ratio;
use crate::table::{Table, marked, mib, number, times};
use crate::target::calls;
use crate::verdict::{self, Bound, Verdict};

const VALUE_BYTES: usize = 100;
/// Of the 99th percentile while data moves, to the one while it does not.
const P99_RATIO_MAX: f64 = 1.5;
/// Fewer say nothing about a 99th percentile.
const REQUESTS_MIN: u64 = 2_000;
const MOVE_POLL: Duration = Duration::from_millis(20);
const MOVE_TIMEOUT: Duration = Duration::from_secs(1_800);

#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    #[arg(long, default_value = "sled")]
    engine: Engine,
    #[arg(long, default_value_t = 300_000)]
    records: u32,
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Of the measurement while nothing moves; the other takes as long as the move.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Moving {
    pub(crate) engine: Engine,
    pub(crate) records: u32,
    pub(crate) clients: usize,
    pub(crate) moves: Vec<Move>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Move {
    pub(crate) operation: Operation,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) seconds: f64,
    /// Taken over by all nodes together, and how many did not have to be sent.
    pub(crate) records: f64,
    pub(crate) bytes: f64,
    pub(crate) records_held: f64,
    pub(crate) quiet: Point,
    pub(crate) moving: Point,
    pub(crate) failed: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Point {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) disturbance: f64,
}

impl Point {
    fn of(sample: &Sample) -> Self {
        Self {
            per_second: sample.per_second(),
            p50_us: sample.latency_us(0.5),
            p99_us: sample.latency_us(0.99),
            disturbance: sample.disturbance(),
        }
    }
}

/// What all nodes have taken over since they started: records, bytes, records that they held.
async fn taken_over(servers: &Servers) -> Result<[f64; 3]> {
    let names = ["records_total", "bytes_total", "records_held_total"];
    let mut sums = [0.0; 3];
    for http in servers.each().iter().filter_map(|server| server.http) {
        for (sum, name) in sums.iter_mut().zip(names) {
            *sum += probe::metric(http, &format!("keystore_transfer_{name}")).await?;
        }
    }
    Ok(sums)
}

pub(crate) async fn run(programs: &Programs, shape: &Shape) -> Result<Moving> {
    let settings = [("storage.engine", shape.engine.name())];
    let mut servers = Servers::store(programs, "moving", &settings)?;
    let targets = calls(&servers.channels()?, Operation::Put.levels());
    servers.wait(&targets).await?;
    eprintln!("{}: {} records", shape.engine.name(), shape.records);
    fill(&targets, shape.records, VALUE_BYTES).await?;
    let mut moves = Vec::new();
    // There and back, under each kind of load.
    for operation in [Operation::DurablePut, Operation::Get] {
        for to in [NODES + 1, NODES] {
            let from = 2 * NODES + 1 - to;
            settle(&servers).await?;
            moves.push(one_move(&mut servers, shape, (operation, from, to)).await?);
        }
    }
    let Shape { engine, records, clients, .. } = shape.clone();
    Ok(Moving { engine, records, clients, moves })
}

async fn one_move(
    servers: &mut Servers,
    shape: &Shape,
    (operation, from, to): (Operation, usize, usize),
) -> Result<Move> {
    let load = Load {
        kind: operation.kind(),
        clients: shape.clients,
        value_bytes: VALUE_BYTES,
        keys: shape.records,
        time: Duration::from_secs(shape.seconds),
    };
    // Those that stay, whoever else there is.
    let channels = servers.connections(servers.each().len())?;
    let targets = calls(channels.get(..NODES).context("a store has nodes")?, operation.levels());
    let quiet = observe(servers, &targets, &load, async |_ends| Ok(())).await?;
    let is_new = servers.each().len() < to;
    let joins = if is_new { Some(servers.add()?) } else { None };
    if is_new {
        wait_for_answer(servers).await?;
    }
    let before = taken_over(servers).await?;
    let mut change = servers.rearrangement(to, joins)?;
    let mut took = Duration::ZERO;
    let load = Load { time: Duration::ZERO, ..load };
    let moving = observe(servers, &targets, &load, async |_ends| {
        let begun = Instant::now();
        let mut change = change.spawn().context("cannot start keystorectl")?;
        wait_for_end(&mut change).await?;
        took = begun.elapsed();
        Ok(())
    })
    .await?;
    let requests = moving.requests();
    ensure!(requests >= REQUESTS_MIN, "the move is over after {requests} requests: take more --records");
    let mut moved = taken_over(servers).await?;
    moved.iter_mut().zip(before).for_each(|(moved, before)| *moved -= before);
    let [records, bytes, records_held] = moved;
    eprintln!(
        "  {} while {from} become {to}: {:.1} s, p99 {:.2} ms, quiet {:.2} ms",
        operation.name(),
        took.as_secs_f64(),
        moving.latency_us(0.99) / 1e3,
        quiet.latency_us(0.99) / 1e3
    );
    Ok(Move {
        operation,
        from,
        to,
        seconds: took.as_secs_f64(),
        records,
        bytes,
        records_held,
        quiet: Point::of(&quiet),
        moving: Point::of(&moving),
        failed: moving.failed,
    })
}

/// Until the last node, which belongs to no cluster, says what it is.
async fn wait_for_answer(servers: &Servers) -> Result<()> {
    let begun = Instant::now();
    let http = servers.each().last().and_then(|server| server.http).context("a node says how it is")?;
    while probe::metric(http, "keystore_epoch").await.is_err() {
        ensure!(begun.elapsed() < MOVE_TIMEOUT, "the node that is to join does not start");
        sleep(MOVE_POLL).await;
    }
    Ok(())
}

async fn wait_for_end(change: &mut Child) -> Result<()> {
    let begun = Instant::now();
    loop {
        if let Some(ended) = change.try_wait()? {
            let mut said = String::new();
            if let Some(stderr) = &mut change.stderr {
                stderr.read_to_string(&mut said)?;
            }
            ensure!(ended.success(), "the move has not ended: {said}");
            return Ok(());
        }
        ensure!(begun.elapsed() < MOVE_TIMEOUT, "the move does not end");
        sleep(MOVE_POLL).await;
    }
}

impl Moving {
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let of = |Move { operation, from, to, quiet, moving, failed, .. }: &Move| {
            let what = format!("{}: {} while {from} nodes become {to}", self.engine.name(), operation.name());
            let disturbance = quiet.disturbance.max(moving.disturbance);
            let p99 = ratio(moving.p99_us, quiet.p99_us);
            [
                Verdict::new(format!("{what}, p99 to that when quiet"), p99, Bound::AtMost(P99_RATIO_MAX)),
                Verdict::new(format!("{what}, failed"), Some(*failed as f64), Bound::AtMost(0.0)),
            ]
            .map(|verdict| verdict.under(disturbance))
        };
        self.moves.iter().flat_map(of).collect()
    }

    pub(crate) fn disturbance(&self) -> f64 {
        let points = self.moves.iter().flat_map(|one| [one.quiet, one.moving]);
        points.map(|point| point.disturbance).fold(0.0, f64::max)
    }

    pub(crate) fn tables(&self) -> Vec<Table> {
        vec![verdict::table(&self.verdicts()), self.table()]
    }

    fn table(&self) -> Table {
        let title = format!(
            "While data moves: {} records of {VALUE_BYTES} bytes, {} clients, {}",
            number(f64::from(self.records), 0),
            self.clients,
            self.engine.name()
        );
        let heads = [
            "operation",
            "nodes",
            "s",
            "records moved",
            "MiB",
            "held already",
            "quiet: per s",
            "p50 ms",
            "p99 ms",
            "moving: per s",
            "p50 ms",
            "p99 ms",
            "× p99",
        ];
        let mut table = Table::new(&title, &heads);
        for one in &self.moves {
            let Move { operation, from, to, seconds, records, bytes, records_held, quiet, moving, failed: _ } =
                one;
            let point = |point: &Point| {
                [number(point.per_second, 0), number(point.p50_us / 1e3, 2), number(point.p99_us / 1e3, 2)]
            };
            let disturbance = quiet.disturbance.max(moving.disturbance);
            let what = [
                marked(operation.name(), disturbance),
                format!("{from} to {to}"),
                number(*seconds, 1),
                number(*records, 0),
                mib(*bytes),
                number(*records_held, 0),
            ];
            let ratio = [times(ratio(moving.p99_us, quiet.p99_us))];
            table.row(what.into_iter().chain(point(quiet)).chain(point(moving)).chain(ratio));
        }
        table
    }
}
