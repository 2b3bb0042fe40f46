//! Measures the store on this machine: against etcd, side by side, and alone.
//!
//! Server CPU time is what counts, summed over the three processes: servers and clients share the machine, so
//! throughput says as much about the load generator, which is the same for all, tonic on one thread. Decisions (what a
//! median, a ratio, a verdict is) are in modules of their own without I/O; servers end with whoever has started them.

mod statistics;
mod proc;
mod cores;
mod probe;
mod process;
mod target;
mod servers;
mod machine;
mod meter;
mod table;
mod verdict;
mod etcd;
mod measure;
mod open_loop;
mod fill;
mod settle;
mod compare;
mod comparison;
mod figures;
mod stress;
mod growth;
mod moving;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use comparison::Comparison;
use machine::{Machine, version};
use report::Results;
use servers::Programs;

#[derive(Debug, Parser)]
#[command(about = "Measures the store on this machine. Without a command: compare and figures.")]
struct Arguments {
    /// The store's programs; those beside this one if none are named.
    #[arg(long)]
    node: Option<PathBuf>,
    #[arg(long)]
    ctl: Option<PathBuf>,
    /// What to compare with.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Where the servers' data goes while they run: on the disk that is to be measured.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Also writes the figures as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Figures that others have disturbed are marked, not refused.
    #[arg(long, global = true)]
    allow_disturbed: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Three nodes against a three-node etcd, in turn.
    Compare(compare::Shape),
    /// Scans, starts, memory, idle cost, bytes written.
    Figures(figures::Shape),
    /// Overload, many connections, replicas in trouble, sizes: each with its target.
    Stress(stress::Shape),
    /// Millions of records against a few. Takes long.
    Growth(growth::Shape),
    /// A node more and a node less, under load: what clients notice while data moves.
    Moving(moving::Shape),
    /// Makes a page of what was measured.
    Report(report::Wanted),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Arguments { node, ctl, etcd, data, json, allow_disturbed, part } = arguments;
    let parts = match part {
        Some(Part::Report(wanted)) => return report::write(&wanted, allow_disturbed),
        Some(part) => vec![part],
        None => vec![Part::Compare(defaults()?), Part::Figures(defaults()?)],
    };
    let data = data.context("--data says where the servers' data goes")?;
    let beside = |name: &str| Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name(name));
    let node = node.map_or_else(|| beside("keystore-node"), Ok)?;
    let ctl = ctl.map_or_else(|| beside("keystorectl"), Ok)?;
    let programs = Programs { node, ctl, etcd, data };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let results = runtime.block_on(local.run_until(measure_or_end(&programs, parts)))?;
    results.tables().iter().for_each(|table| print!("{}", table.text()));
    if let Some(path) = json {
        results.write(&path)?;
    }
    if !allow_disturbed {
        results.check_undisturbed()?;
    }
    results.check_targets()
}

/// What a command does that is told nothing.
fn defaults<A: Args>() -> Result<A> {
    let command = A::augment_args(clap::Command::new("defaults").no_binary_name(true));
    Ok(A::from_arg_matches(&command.try_get_matches_from([""; 0])?)?)
}

/// A signal ends the measuring, and with it the servers.
async fn measure_or_end(programs: &Programs, parts: Vec<Part>) -> Result<Results> {
    let mut told = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        results = measure(programs, parts) => results,
        _ = told.recv() => bail!("told to stop"),
        _ = interrupted.recv() => bail!("interrupted"),
    }
}

async fn measure(programs: &Programs, parts: Vec<Part>) -> Result<Results> {
    let mut results = Results::on(Machine::of(programs)?);
    for part in parts {
        match part {
            Part::Compare(shape) => {
                let etcd = programs.etcd.as_ref().context("--etcd says where etcd is")?;
                let etcd = version(etcd)?;
                let cells = compare::compare(programs, &shape).await?;
                results.compare = Some(Comparison::of(&cells, etcd));
            }
            Part::Figures(shape) => results.figures = Some(figures::measure(programs, &shape).await?),
            Part::Stress(shape) => results.stress = Some(stress::run(programs, &shape).await?),
            Part::Growth(shape) => results.growth.push(growth::run(programs, &shape).await?),
            Part::Moving(shape) => results.moving.push(moving::run(programs, &shape).await?),
            Part::Report(_) => {}
        }
    }
    Ok(results)
}
