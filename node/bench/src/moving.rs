//! What clients notice while data moves: a store grows by a node and shrinks again, under load, against the same load
//! before and after, while nothing moves.
//!
//! A move happens once and is measured as it comes, so seconds that others have disturbed do not count, of neither.

use std::io::Read as _;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::compare::Operation;
use crate::fill::fill;
use crate::measure::{Load, Sample, Second, new_histogram, observe};
use crate::meter::{DISTURBANCE_MAX, Used};
use crate::probe;
use crate::servers::{Engine, NODES, Programs, Servers};
use crate::settle::settle;
use crate::statistics::ratio;
use crate::table::{Table, marked, mib, number, times};
use crate::target::{Calls, calls};
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
    /// Of each measurement while nothing moves; the others take as long as the move.
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
    /// Of all their seconds that count. Where those are the lesser part, all count, and it is disturbed.
    fn of(samples: &[&Sample]) -> Result<Self> {
        let all = || samples.iter().flat_map(|sample| &sample.seconds);
        let is_calm = |second: &&Second| second.used.disturbance() <= DISTURBANCE_MAX;
        let is_mostly_calm = 2 * all().filter(is_calm).count() >= all().count();
        let (mut latencies, mut used) = (new_histogram()?, Used::default());
        for second in all().filter(|second| is_calm(second) || !is_mostly_calm) {
            latencies.add(&second.latencies)?;
            used.time += second.used.time;
            used.others += second.used.others;
        }
        let requests = latencies.len();
        ensure!(requests >= REQUESTS_MIN, "only {requests} requests count: take more --records");
        Ok(Self {
            per_second: latencies.len() as f64 / used.time.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5) as f64,
            p99_us: latencies.value_at_quantile(0.99) as f64,
            disturbance: used.disturbance(),
        })
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
        let mut before = quiet(&servers, shape, operation).await?;
        for to in [NODES + 1, NODES] {
            let from = 2 * NODES + 1 - to;
            let (one, after) = one_move(&mut servers, shape, (operation, from, to), &before).await?;
            moves.push(one);
            before = after;
        }
    }
    let Shape { engine, records, clients, .. } = shape.clone();
    Ok(Moving { engine, records, clients, moves })
}

fn load(shape: &Shape, operation: Operation, time: Duration) -> Load {
    let Shape { clients, records, .. } = *shape;
    Load { kind: operation.kind(), clients, value_bytes: VALUE_BYTES, keys: records, time }
}

/// Those that stay, whoever else there is.
fn targets(servers: &Servers, operation: Operation) -> Result<Vec<Calls>> {
    let channels = servers.connections(servers.each().len())?;
    Ok(calls(channels.get(..NODES).context("a store has nodes")?, operation.levels()))
}

/// While nothing moves.
async fn quiet(servers: &Servers, shape: &Shape, operation: Operation) -> Result<Sample> {
    settle(servers).await?;
    let load = load(shape, operation, Duration::from_secs(shape.seconds));
    observe(servers, &targets(servers, operation)?, &load, async |_ends| Ok(())).await
}

/// Returns what is measured after it, too.
async fn one_move(
    servers: &mut Servers,
    shape: &Shape,
    (operation, from, to): (Operation, usize, usize),
    before: &Sample,
) -> Result<(Move, Sample)> {
    let targets = targets(servers, operation)?;
    let is_new = servers.each().len() < to;
    let joins = if is_new { Some(servers.add()?) } else { None };
    if is_new {
        wait_for_answer(servers).await?;
    }
    let taken_before = taken_over(servers).await?;
    let mut change = servers.rearrangement(to, joins)?;
    let mut took = Duration::ZERO;
    let load = load(shape, operation, Duration::ZERO);
    let moving = observe(servers, &targets, &load, async |_ends| {
        let begun = Instant::now();
        let mut change = change.spawn().context("cannot start keystorectl")?;
        wait_for_end(&mut change).await?;
        took = begun.elapsed();
        Ok(())
    })
    .await?;
    let mut moved = taken_over(servers).await?;
    moved.iter_mut().zip(taken_before).for_each(|(moved, before)| *moved -= before);
    let [records, bytes, records_held] = moved;
    let after = quiet(servers, shape, operation).await?;
    let failed = moving.failed;
    let (quiet, moving) = (Point::of(&[before, &after])?, Point::of(&[&moving])?);
    eprintln!(
        "  {} while {from} become {to}: {:.1} s, p99 {:.2} ms, quiet {:.2} ms",
        operation.name(),
        took.as_secs_f64(),
        moving.p99_us / 1e3,
        quiet.p99_us / 1e3
    );
    let one = Move {
        operation,
        from,
        to,
        seconds: took.as_secs_f64(),
        records,
        bytes,
        records_held,
        quiet,
        moving,
        failed,
    };
    Ok((one, after))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of so many requests of so many microseconds, and what others used meanwhile.
    fn sample(seconds: &[(u64, u64, u64)]) -> Sample {
        let second = |(requests, latency_us, others_ms): &(u64, u64, u64)| {
            let mut latencies = new_histogram().unwrap();
            latencies.record_n(*latency_us, *requests).unwrap();
            let (time, others) = (Duration::from_secs(1), Duration::from_millis(*others_ms));
            Second { latencies, used: Used { time, others, ..Used::default() } }
        };
        Sample {
            latencies: new_histogram().unwrap(),
            failed: 0,
            example: None,
            by_client: Vec::new(),
            used: Used::default(),
            seconds: seconds.iter().map(second).collect(),
        }
    }

    #[test]
    fn seconds_that_others_disturb_do_not_count_unless_they_are_most() {
        let calm = sample(&[(4_000, 1_000, 100), (4_000, 9_000, 900), (2_000, 1_000, 100)]);
        let point = Point::of(&[&calm]).unwrap();
        assert_eq!((point.per_second, point.p99_us), (3_000.0, 1_000.0));
        assert!(point.disturbance < DISTURBANCE_MAX);
        let disturbed = sample(&[(4_000, 9_000, 900), (4_000, 9_000, 900), (4_000, 1_000, 100)]);
        let point = Point::of(&[&disturbed]).unwrap();
        assert!(point.p99_us > 8_900.0 && point.disturbance > DISTURBANCE_MAX, "{point:?}");
    }

    #[test]
    fn too_few_requests_are_no_figure() {
        assert!(Point::of(&[&sample(&[])]).is_err());
        assert!(Point::of(&[&sample(&[(REQUESTS_MIN - 1, 1_000, 0)])]).is_err());
    }
}
