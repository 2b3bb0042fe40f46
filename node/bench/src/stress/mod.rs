//! The store under more than it can do, with more connections than it likes, with replicas in trouble, and with values
//! and keys of all sizes; each with what it has to keep to.

mod goodput;
mod crowd;
mod replica;
mod sizes;
mod tables;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::compare::Operation;
use crate::fill::fill;
use crate::measure::Load;
use crate::servers::{Engine, Programs, Servers};
use crate::target::calls;
use crate::verdict::Verdict;
use crowd::Crowd;
use goodput::Goodput;
use replica::Replica;
use sizes::Sizes;

const KEYS: u32 = 10_000;
const VALUE_BYTES: usize = 100;

#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    #[arg(long, value_delimiter = ',', default_value = "goodput,crowd,replica,sizes")]
    only: Vec<Test>,
    #[arg(long, default_value = "sled")]
    engine: Engine,
    /// Of one measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often troubles of a replica are measured; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Beside troubled replicas and large values: few, so that not the processors make them wait.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// To each node, for three times the load. All streams of a node together have some 500 operations in flight.
    #[arg(long, default_value_t = 12)]
    streams: usize,
    /// Of the crowd.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Of the crowd, all together.
    #[arg(long, default_value_t = 4_096)]
    in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Test {
    /// Three times the load that saturates it.
    Goodput,
    /// Many connections, many requests in flight.
    Crowd,
    /// One replica of three slow or stopped.
    Replica,
    /// Large values beside small ones, a hot key, the shortest and longest keys.
    Sizes,
}

/// Of those tests that were made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stress {
    pub(crate) engine: Engine,
    pub(crate) goodput: Vec<Goodput>,
    pub(crate) crowd: Vec<Crowd>,
    pub(crate) replica: Vec<Replica>,
    pub(crate) sizes: Option<Sizes>,
    pub(crate) verdicts: Vec<Verdict>,
}

pub(crate) async fn run(programs: &Programs, shape: &Shape) -> Result<Stress> {
    let (goodput, crowd, replica) = (Vec::new(), Vec::new(), Vec::new());
    let mut stress =
        Stress { engine: shape.engine.clone(), goodput, crowd, replica, sizes: None, verdicts: Vec::new() };
    for test in &shape.only {
        match test {
            Test::Goodput => {
                eprintln!("three times the load that saturates the store");
                stress.goodput = goodput::run(programs, shape).await?;
            }
            Test::Crowd => {
                eprintln!("{} connections, {} requests in flight", shape.connections, shape.in_flight);
                stress.crowd = crowd::run(programs, shape).await?;
            }
            Test::Replica => {
                eprintln!("one replica in trouble");
                stress.replica = replica::run(programs, shape).await?;
            }
            Test::Sizes => {
                eprintln!("large values, a hot key, short and long keys");
                stress.sizes = Some(sizes::run(programs, shape).await?);
            }
        }
    }
    stress.verdicts = stress.judge();
    Ok(stress)
}

impl Stress {
    fn judge(&self) -> Vec<Verdict> {
        let goodput = self.goodput.iter().flat_map(Goodput::verdicts);
        let crowd = self.crowd.iter().flat_map(Crowd::verdicts);
        let replica = self.replica.iter().flat_map(Replica::verdicts);
        let sizes = self.sizes.iter().flat_map(Sizes::verdicts);
        goodput.chain(crowd).chain(replica).chain(sizes).collect()
    }

    pub(crate) fn disturbance(&self) -> f64 {
        let goodput = self.goodput.iter().map(|of| of.disturbance);
        let crowd = self.crowd.iter().map(|of| of.disturbance);
        let replica = self.replica.iter().map(|of| of.disturbance);
        let sizes = self.sizes.iter().flat_map(|sizes| &sizes.small).map(|of| of.disturbance);
        goodput.chain(crowd).chain(replica).chain(sizes).fold(0.0, f64::max)
    }
}

impl Shape {
    /// Of one measurement over all keys.
    fn load(&self, operation: Operation, clients: usize) -> Load {
        let time = Duration::from_secs(self.seconds);
        Load { kind: operation.kind(), clients, value_bytes: VALUE_BYTES, keys: KEYS, time }
    }
}

fn store(programs: &Programs, engine: &Engine) -> Result<Servers> {
    Servers::store(programs, "stress", &[("storage.engine", engine.name())])
}

/// Waits until it serves, and writes every key once.
async fn prepare(servers: &mut Servers) -> Result<()> {
    let targets = calls(&servers.channels()?, Operation::Put.levels());
    servers.wait(&targets).await?;
    fill(&targets, KEYS, VALUE_BYTES).await?;
    Ok(())
}
