//! Measures the store against etcd, side by side: three nodes of each on loopback, rounds of the one and the other in
//! turn, and the figures of a round as ratios to etcd's in the same round.
//!
//! Server CPU time is what counts, summed over the three processes: servers and clients share the machine, so
//! throughput says as much about the load generator, which is the same for all, tonic on one thread.

mod compare;
mod etcd;
mod measure;
mod proc;
mod report;
mod servers;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use servers::Programs;

#[derive(Debug, Parser)]
#[command(about = "Measures the store against etcd on this machine.")]
struct Arguments {
    /// The store's programs.
    #[arg(long)]
    node: PathBuf,
    #[arg(long)]
    ctl: PathBuf,
    #[arg(long)]
    etcd: PathBuf,
    /// Where the servers' data goes while they run: on the disk that is to be measured.
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    shape: compare::Shape,
    /// Also writes the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { node, ctl, etcd, data, shape, json } = Arguments::parse();
    let programs = Programs { node, ctl, etcd, data };
    match run(&programs, &shape, json.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(programs: &Programs, shape: &compare::Shape, json: Option<&std::path::Path>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let cells = local.block_on(&runtime, compare::compare(programs, shape))?;
    let report = report::Report::of(&cells);
    print!("{}", report.table());
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    report.check()
}
