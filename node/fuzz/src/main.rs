//! `keystore-fuzz`: feeds the decoders for as long as it is told, and writes down what breaks one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use keystore_fuzz::corpus;
use keystore_fuzz::run::{Broken, Run};
use keystore_fuzz::targets::{TARGETS, Target};

/// How many inputs go by between two looks at the clock.
const STEPS: u32 = 1024;

/// Feeds every decoder of outside bytes with seeded mutations of its corpus.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this target.
    #[arg(long)]
    target: Option<String>,
    /// How long for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The same seed feeds the same inputs in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { target, seconds, seed } = Arguments::parse();
    let chosen: Vec<_> =
        TARGETS.into_iter().filter(|of| target.as_deref().is_none_or(|name| name == of.name)).collect();
    anyhow::ensure!(!chosen.is_empty(), "there is no such target; there are: {}", names());
    // A panic is a result here, told once and by us.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut passed, mut failed) = (0, 0);
    for target in chosen {
        match fuzz(target, seed, Duration::from_secs(seconds))? {
            None => passed += 1,
            Some(broken) => {
                failed += 1;
                let path = write_down(target, &broken)?;
                println!("{}: {}; the input is {}", target.name, broken.message, path.display());
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fuzz(target: Target, seed: u64, time: Duration) -> anyhow::Result<Option<Broken>> {
    let inputs = corpus::load(target)?.into_iter().map(|(_, input)| input).collect();
    let mut run = match Run::new(target, inputs, seed) {
        Ok(run) => run,
        Err(broken) => return Ok(Some(broken)),
    };
    let begun = Instant::now();
    let mut steps = 0_u64;
    while begun.elapsed() < time {
        for _ in 0..STEPS {
            if let Err(broken) = run.step() {
                return Ok(Some(broken));
            }
        }
        steps += u64::from(STEPS);
    }
    println!("{}: {steps} inputs, {} shapes of results", target.name, run.signatures());
    Ok(None)
}

/// Into the directory from which it is run: whoever mends the decoder moves it into the corpus.
fn write_down(target: Target, broken: &Broken) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(format!("{}-broken.bin", target.name));
    std::fs::write(&path, &broken.input)?;
    Ok(path)
}

fn names() -> String {
    TARGETS.map(|target| target.name).join(" ")
}
