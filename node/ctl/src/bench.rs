//! `bench`: a closed loop of clients that put and get random keys, and what came of it.

mod load;
mod report;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::{BenchArgs, Globals};
use crate::failure::Failure;
use crate::reach;
use load::{Load, Tally};

pub(crate) async fn bench(globals: &Globals, args: &BenchArgs) -> Result<(), Failure> {
    let addresses = reach::client_addresses(globals).await?;
    // Says what is wrong, if anything is, before the first message.
    drop(reach::connect(globals, &addresses).await?);
    // The runtime of this thread carries the port-forwards, if there are any; the load has its own.
    let stop = CancellationToken::new();
    let threads: Vec<_> = (0..args.threads)
        .map(|thread| Load {
            globals: globals.clone(),
            args: args.clone(),
            addresses: addresses.addresses.clone(),
            direct: addresses.announced_are_reachable,
            thread,
            stop: stop.clone(),
        })
        .collect();
    if args.read_share > 0.0 {
        eprintln!("writing {} keys", args.keys);
        run(&threads, Load::preload).await?;
    }
    eprintln!("measuring for {} s with {} clients", args.seconds, args.clients);
    let start = Instant::now();
    let until = stop.clone();
    let seconds = Duration::from_secs(args.seconds.into());
    let measuring = run(&threads, Load::measure);
    tokio::pin!(measuring);
    let tally = tokio::select! {
        result = &mut measuring => result?,
        () = tokio::time::sleep(seconds) => {
            until.cancel();
            measuring.await?
        }
        _ = tokio::signal::ctrl_c() => {
            until.cancel();
            measuring.await?
        }
    };
    report::print(globals.output, &tally, start.elapsed())
}

/// Runs a part of the load on a thread each and adds up what they counted.
async fn run(threads: &[Load], part: fn(&Load) -> Result<Tally, Failure>) -> Result<Tally, Failure> {
    let total = Arc::new(Mutex::new(Tally::default()));
    let mut running = tokio::task::JoinSet::new();
    for load in threads {
        let (load, total) = (load.clone(), total.clone());
        running.spawn_blocking(move || {
            let tally = part(&load)?;
            total.lock().unwrap_or_else(PoisonError::into_inner).add(&tally);
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(|error| Failure::other(error.to_string()))??;
    }
    let total = total.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(total.clone())
}
