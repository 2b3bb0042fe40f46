//! `bench`: many clients that put and get keys of its own, in a closed loop or at a rate, and what came of it.
//!
//! Three tasks in turn: it writes the keys, measures, and deletes the keys if it is to. Ctrl-C ends the one that is
//! under way; what was measured by then is reported. That requests are not done is a result, no failure, unless
//! none was.

mod zipf;
mod schedule;
mod tally;
mod tickets;
mod load;
mod worker;
mod crew;
mod figures;
mod report;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keystore_client::{Error, ReadOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::{BenchArgs, Globals};
use crate::failure::Failure;
use crate::live::Live;
use crate::reach::{self, Addresses};
use crew::{Crew, End, Part, Task};
use figures::{Figures, per_second, progress, round};
use load::Load;
use report::Measured;
use schedule::Schedule;
use tally::Tally;
use tickets::Tickets;
use worker::{Action, Pass, Place, Worker};

const SECONDS_DEFAULT: u32 = 10;

pub(crate) async fn bench(globals: &Globals, args: &BenchArgs) -> Result<(), Failure> {
    // The runtime of this thread carries the port-forwards, if there are any; the load has its own.
    let addresses = reach::client_addresses(globals).await?;
    let load = Arc::new(Load::new(args));
    check(globals, &load, &addresses).await?;
    let place = Place {
        globals: globals.clone(),
        addresses: addresses.addresses.clone(),
        direct: addresses.announced_are_reachable,
    };
    let crew = Crew::start(place, &load).await?;
    let live = Live::choose(args.quiet);
    let mut bench = Bench { globals, crew, load, live, is_abandoned: false };
    let measured = bench.preload_and_measure().await;
    let cleaned = bench.cleanup().await;
    measured.and(cleaned)
}

/// Says what is wrong with what was typed, if anything is, before there are thousands of requests.
async fn check(globals: &Globals, load: &Load, addresses: &Addresses) -> Result<(), Failure> {
    let client = reach::connect(globals, addresses).await?;
    match client.get(&globals.keyspace, load.name(0), ReadOptions::default()).await {
        Err(error @ (Error::BadRequest(_) | Error::Refused(_))) => Err(error.into()),
        // That a store in trouble does not answer each request is worth measuring.
        Err(_) | Ok(_) => Ok(()),
    }
}

struct Bench<'a> {
    globals: &'a Globals,
    crew: Crew,
    load: Arc<Load>,
    live: Live,
    /// Threads still wait for answers that nobody wants any more.
    is_abandoned: bool,
}

impl Bench<'_> {
    async fn preload_and_measure(&mut self) -> Result<(), Failure> {
        let args = &self.load.args;
        if args.read_share > 0.0 && !args.skip_preload {
            let (_, end) = self.pass(Action::Write).await?;
            if end != End::Finished {
                return Err(Failure::other("interrupted before anything was measured"));
            }
        }
        let measured = self.measure().await?;
        report::print(self.globals, &self.load, &measured)?;
        let tally = &measured.tally;
        match (tally.gets.done + tally.puts.done, tally.most_frequent_error()) {
            (0, Some(error)) => {
                let failure = Failure::from(error.clone());
                Err(Failure { message: format!("nothing was done: {}", failure.message), ..failure })
            }
            (0, None) => Err(Failure::other("nothing was measured")),
            _ => Ok(()),
        }
    }

    async fn measure(&mut self) -> Result<Measured, Failure> {
        let args = self.load.args.clone();
        let seconds = args.seconds.or(args.operations.is_none().then_some(SECONDS_DEFAULT));
        self.live.say(&intention(&args, seconds));
        let stop = CancellationToken::new();
        let operations_max = args.operations.unwrap_or(u64::MAX);
        let tickets = Tickets::new(operations_max, args.rate.map(Schedule::new), stop.clone());
        let tickets = Arc::new(tickets);
        let mut parts = self.parts(
            |worker, tickets| {
                worker.measure(tickets);
                Ok(())
            },
            &tickets,
        );
        let letting_out = tickets.clone();
        parts.push(Box::new(move || {
            letting_out.let_out();
            Ok(())
        }));
        let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        let (live, period) = (self.live, self.live.period());
        let workers = self.crew.workers.clone();
        let mut total = Tally::default();
        let mut last = Duration::ZERO;
        let end = self.crew.run(Task { parts, stop, until, period }, || {
            let elapsed = tickets.elapsed();
            let recent = collect(&workers);
            total.add(&recent);
            let period = elapsed - std::mem::replace(&mut last, elapsed);
            let waiting = tickets.are_over().then(|| tickets.taken().saturating_sub(total.ended()));
            let overdue = tickets.overdue();
            let figures =
                Figures { recent: &recent, period, total: &total, elapsed, seconds, overdue, waiting };
            live.show(&figures.line());
        });
        let end = end.await?;
        let elapsed = tickets.elapsed();
        total.add(&collect(&workers));
        live.clear();
        self.is_abandoned = end == End::Abandoned;
        Ok(Measured {
            elapsed,
            not_sent: tickets.overdue(),
            unanswered: tickets.taken().saturating_sub(total.ended()),
            is_interrupted: end != End::Finished,
            tally: total,
        })
    }

    /// Deletes what was written, if that was asked for.
    async fn cleanup(&mut self) -> Result<(), Failure> {
        let Some(written) = self.load.written() else { return Ok(()) };
        let total = written.len();
        let left = |done: u64| {
            Failure::other(format!("interrupted: {} keys of {total} were not deleted", total - done))
        };
        if self.is_abandoned {
            return Err(left(0));
        }
        match self.pass(Action::Delete).await? {
            (_, End::Finished) => Ok(()),
            (done, End::Interrupted | End::Abandoned) => Err(left(done)),
        }
    }

    /// Does the same to all keys, and says how many were done.
    async fn pass(&mut self, action: Action) -> Result<(u64, End), Failure> {
        let (stop, begun) = (CancellationToken::new(), Instant::now());
        let pass = Arc::new(Pass::new(action, &self.load, stop.clone()));
        let (doing, did) = match action {
            Action::Write => ("writing keys", "wrote"),
            Action::Delete => ("deleting keys", "deleted"),
        };
        let (live, period) = (self.live, self.live.period());
        let parts = self.parts(Worker::pass, &pass);
        let done = || pass.done.load(Ordering::Relaxed);
        let show = || live.show(&progress(doing, (done(), pass.total), begun.elapsed()));
        let end = self.crew.run(Task { parts, stop, until: None, period }, show).await;
        live.clear();
        self.is_abandoned = matches!(end, Ok(End::Abandoned));
        let told = |failure: Failure| Failure { message: format!("{doing}: {}", failure.message), ..failure };
        let (end, elapsed) = (end.map_err(told)?, begun.elapsed());
        let rate = round(per_second(done(), elapsed));
        live.say(&format!("{did} {} keys in {:.1} s, {rate}/s", done(), elapsed.as_secs_f64()));
        Ok((done(), end))
    }

    /// The same for each worker.
    fn parts<T: Send + Sync + 'static>(
        &self,
        part: fn(&Worker, &T) -> Result<(), Failure>,
        with: &Arc<T>,
    ) -> Vec<Part> {
        let part = |worker: &Arc<Worker>| {
            let (worker, with) = (worker.clone(), with.clone());
            Box::new(move || part(&worker, &with)) as Part
        };
        self.crew.workers.iter().map(part).collect()
    }
}

fn collect(workers: &[Arc<Worker>]) -> Tally {
    let mut tally = Tally::default();
    workers.iter().for_each(|worker| tally.add(&worker.take_recent()));
    tally
}

fn intention(args: &BenchArgs, seconds: Option<u32>) -> String {
    let seconds = seconds.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
    let operations =
        args.operations.map_or_else(String::new, |operations| format!(" {operations} operations"));
    let rate = args.rate.map_or_else(String::new, |rate| format!(", {rate} operations per second"));
    format!("measuring{operations}{seconds} with {} clients{rate}", args.clients)
}
