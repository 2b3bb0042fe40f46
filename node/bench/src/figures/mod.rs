//! The store alone, figure by figure: scans, starts, memory, what an idle node costs, what a write puts on disks.

mod idle;
mod scan;
mod engine;
mod tables;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::servers::{Engine, Programs};
use engine::EngineFigures;
use idle::Idle;

#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    #[arg(long, value_delimiter = ',', default_value = "sled,memory")]
    engines: Vec<Engine>,
    /// How many are loaded, with values of 100 bytes.
    #[arg(long, default_value_t = 1_000_000)]
    records: u32,
    /// How many are loaded with values of 1 KiB.
    #[arg(long, default_value_t = 250_000)]
    large_records: u32,
    /// How long scans are repeated.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How long idle nodes are watched.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// An operator that runs: it is watched as the nodes are.
    #[arg(long)]
    operator_pid: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    pub(crate) engines: Vec<EngineFigures>,
    /// Absent where none was named.
    pub(crate) operator: Option<Idle>,
}

pub(crate) async fn measure(programs: &Programs, shape: &Shape) -> Result<Figures> {
    let mut engines = Vec::new();
    for engine in &shape.engines {
        engines.push(engine::measure(programs, shape, engine).await?);
    }
    let operator = match shape.operator_pid {
        Some(pid) => Some(idle::watch(&[pid], shape.idle_seconds).await?),
        None => None,
    };
    Ok(Figures { engines, operator })
}

impl Figures {
    pub(crate) fn disturbance(&self) -> f64 {
        let operator = self.operator.map_or(0.0, |idle| idle.disturbance);
        self.engines.iter().map(EngineFigures::disturbance).fold(operator, f64::max)
    }
}
