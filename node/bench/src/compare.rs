//! Which measurements are made, and in which order: each round has every system once, beginning with another one.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::etcd::etcds;
use crate::fill::fill;
use crate::measure::{Kind, Load, Sample, measure};
use crate::meter::DISTURBANCE_MAX;
use crate::servers::{Programs, Servers};
use crate::target::{Levels, Read, Write, calls, streams};

/// How often a measurement that was disturbed is made again.
const ATTEMPTS: usize = 3;

#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    /// How often everything is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Of one measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// With values of 100 bytes.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    clients: Vec<usize>,
    /// With 64 clients.
    #[arg(long, value_delimiter = ',', default_value = "100,1024,65536")]
    value_bytes: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "durable-put,put,get,get-one")]
    operations: Vec<Operation>,
    #[arg(long, default_value_t = 10_000)]
    keys: u32,
}

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// Synced on a majority before it is answered, on both sides.
    DurablePut,
    /// Periodic sync against etcd without fsync.
    Put,
    /// Quorum against linearizable.
    Get,
    /// One replica against serializable.
    GetOne,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    Etcd,
    /// The store, a call for each operation.
    Calls,
    /// The store, a stream for each node.
    Stream,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Calls => "calls",
            Self::Stream => "stream",
        }
    }
}

/// The rounds of one point.
pub(crate) struct Cell {
    pub(crate) operation: Operation,
    pub(crate) clients: usize,
    pub(crate) value_bytes: usize,
    pub(crate) rounds: Vec<Vec<(System, Sample)>>,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DurablePut => "durable put",
            Self::Put => "put",
            Self::Get => "quorum get",
            Self::GetOne => "get of one",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::DurablePut | Self::Put => Kind::Put,
            Self::Get | Self::GetOne => Kind::Get,
        }
    }

    pub(crate) fn levels(self) -> Levels {
        let read = if self == Self::GetOne { Read::One } else { Read::Quorum };
        let write = if self == Self::Put { Write::Periodic } else { Write::Synced };
        Levels { read, write }
    }
}

/// The servers of one size of values.
struct Side {
    store: Servers,
    durable: Servers,
    unsynced: Servers,
}

pub(crate) async fn compare(programs: &Programs, shape: &Shape) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for value_bytes in &shape.value_bytes {
        eprintln!("values of {value_bytes} bytes: starting the servers");
        let side = start(programs, shape, *value_bytes).await?;
        for operation in &shape.operations {
            let clients = shape.clients.iter().filter(|clients| *value_bytes == 100 || **clients == 64);
            for clients in clients {
                let load = shape.load(operation.kind(), *clients, *value_bytes);
                let mut rounds = Vec::new();
                for round in 0..shape.rounds {
                    rounds.push(measure_round(&side, *operation, &load, round).await?);
                }
                cells.push(Cell {
                    operation: *operation,
                    clients: *clients,
                    value_bytes: *value_bytes,
                    rounds,
                });
            }
        }
    }
    Ok(cells)
}

impl Shape {
    fn load(&self, kind: Kind, clients: usize, value_bytes: usize) -> Load {
        Load { kind, clients, value_bytes, keys: self.keys, time: Duration::from_secs(self.seconds) }
    }
}

async fn start(programs: &Programs, shape: &Shape, value_bytes: usize) -> Result<Side> {
    let mut side = Side {
        store: Servers::store(programs, "store", &[])?,
        durable: Servers::etcd(programs, "etcd", true)?,
        unsynced: Servers::etcd(programs, "etcd-unsynced", false)?,
    };
    let store = calls(&side.store.channels()?, Operation::Put.levels());
    side.store.wait(&store).await?;
    fill(&store, shape.keys, value_bytes).await?;
    for servers in [&mut side.durable, &mut side.unsynced] {
        let members = etcds(&servers.channels()?, Read::Quorum);
        servers.wait(&members).await?;
        fill(&members, shape.keys, value_bytes).await?;
    }
    Ok(side)
}

async fn measure_round(
    side: &Side,
    operation: Operation,
    load: &Load,
    round: usize,
) -> Result<Vec<(System, Sample)>> {
    let mut systems = [System::Etcd, System::Calls, System::Stream];
    let count = systems.len();
    systems.rotate_left(round % count);
    let mut samples = Vec::new();
    for system in systems {
        let sample = measure_undisturbed(side, system, operation, load).await?;
        eprintln!(
            "{}, {} clients, {} B, round {}: {system:?} {:.0}/s, {:.0} us of CPU each, p99 {:.2} ms",
            operation.name(),
            load.clients,
            load.value_bytes,
            round + 1,
            sample.per_second(),
            sample.cpu_us(),
            sample.latency_us(0.99) / 1e3,
        );
        samples.push((system, sample));
    }
    Ok(samples)
}

/// The least disturbed of a few attempts.
async fn measure_undisturbed(
    side: &Side,
    system: System,
    operation: Operation,
    load: &Load,
) -> Result<Sample> {
    let mut best: Option<Sample> = None;
    for _ in 0..ATTEMPTS {
        let sample = measure_system(side, system, operation, load).await?;
        if best.as_ref().is_none_or(|best| sample.disturbance() < best.disturbance()) {
            best = Some(sample);
        }
        if best.as_ref().is_some_and(|best| best.disturbance() <= DISTURBANCE_MAX) {
            break;
        }
    }
    best.ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}

async fn measure_system(side: &Side, system: System, operation: Operation, load: &Load) -> Result<Sample> {
    let levels = operation.levels();
    match system {
        System::Etcd => {
            let servers = if operation == Operation::Put { &side.unsynced } else { &side.durable };
            measure(servers, &etcds(&servers.channels()?, levels.read), load).await
        }
        System::Calls => measure(&side.store, &calls(&side.store.channels()?, levels), load).await,
        System::Stream => measure(&side.store, &streams(side.store.channels()?, levels).await?, load).await,
    }
}
