//! keystore-e2e: runs scenarios against the Kubernetes that the kubeconfig names.
//!
//! Ends with the counts alone on a line; exit status 1 if anything failed, 2 for a wrong command line.

use std::convert::Infallible;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use keystore_e2e::demonstration;
use keystore_e2e::run::Runner;
use keystore_e2e::scenarios::{self, Scenario};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Scenarios on a real Kubernetes, with the operator installed. Without arguments, the core set.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Scenarios by name or number
    #[arg(value_name = "NAME", conflicts_with_all = ["all", "rotation"], value_parser = parse_scenario)]
    names: Vec<Scenario>,

    /// Every scenario
    #[arg(long, conflicts_with = "rotation")]
    all: bool,

    /// The core set and a few of the others, chosen by this text, for example a commit
    #[arg(long, value_name = "HASH")]
    rotation: Option<String>,

    /// Print the chosen scenarios and run none
    #[arg(long)]
    list: bool,

    /// Leave the namespaces of failed scenarios behind
    #[arg(long)]
    keep_failed: bool,

    /// No scenario: a store is scaled up and down under load, and the terminal shows its partitions moving
    #[arg(long, conflicts_with_all = ["names", "all", "rotation", "list", "keep_failed"])]
    demonstrate: bool,
}

fn parse_scenario(name: &str) -> Result<Scenario, String> {
    scenarios::named(name).ok_or_else(|| "no such scenario; --all --list prints them".to_owned())
}

#[tokio::main]
async fn main() -> ExitCode {
    // The client logs as errors what scenarios bring about on purpose, for example connections to pods that are away.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,kube_client=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("keystore-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { names, all, rotation, list, keep_failed, demonstrate } = arguments;
    let chosen = match rotation {
        Some(hash) => {
            println!("rotation {hash}");
            scenarios::rotation(&hash)
        }
        None if all => scenarios::all(),
        None if names.is_empty() => scenarios::core(),
        None => names,
    };
    if list {
        print_list(&chosen);
        return Ok(ExitCode::SUCCESS);
    }
    let client = kube::Client::try_default().await.context("no Kubernetes can be reached")?;
    client.apiserver_version().await.context("the Kubernetes that the kubeconfig names does not answer")?;
    let interrupted = CancellationToken::new();
    if demonstrate {
        let is_good = tokio::select! {
            result = demonstration::run(client, interrupted.clone()) => result?,
            never = cancel_when_interrupted(interrupted) => match never {},
        };
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let runner = Runner { client, keep_failed, interrupted: interrupted.clone() };
    let counts = tokio::select! {
        counts = runner.run(&chosen) => counts,
        never = cancel_when_interrupted(interrupted) => match never {},
    };
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_list(chosen: &[Scenario]) {
    for scenario in chosen {
        let number = scenario.number.map(|number| number.to_string()).unwrap_or_default();
        println!("{number:>2} {:<18} {}", scenario.name, scenario.shows);
    }
}

/// The first interrupt cleans up, the second one does not wait for that.
async fn cancel_when_interrupted(interrupted: CancellationToken) -> Infallible {
    loop {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        if interrupted.is_cancelled() {
            std::process::exit(130);
        }
        interrupted.cancel();
    }
}
