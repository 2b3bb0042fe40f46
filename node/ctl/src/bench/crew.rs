//! All threads of the load: started, set to one task after the other, and stopped by time or by a signal.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use super::load::Load;
use super::worker::{Place, Worker};
use crate::failure::Failure;

pub(super) struct Crew {
    pub workers: Vec<Arc<Worker>>,
    signals: Signals,
}

/// What one thread does. It ends soon after its task was stopped.
pub(super) type Part = Box<dyn FnOnce() -> Result<(), Failure> + Send>;

pub(super) struct Task {
    pub parts: Vec<Part>,
    pub stop: CancellationToken,
    /// When it is stopped, unless it has ended before.
    pub until: Option<Instant>,
    /// How often it is shown how it goes.
    pub period: Duration,
}

/// How a task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Finished,
    /// Stopped by a signal.
    Interrupted,
    /// Interrupted for the second time: its threads still wait for answers.
    Abandoned,
}

impl Crew {
    /// From then on signals do not end the process any more.
    pub(super) async fn start(place: Place, load: &Arc<Load>) -> Result<Self, Failure> {
        let mut starting = JoinSet::new();
        for number in 0..load.args.threads.min(load.args.clients) {
            let (place, load) = (place.clone(), load.clone());
            starting.spawn_blocking(move || Worker::start(&place, load, number));
        }
        let mut workers = Vec::new();
        while let Some(started) = starting.join_next().await {
            workers.push(Arc::new(started.map_err(|error| panicked(&error))??));
        }
        Ok(Self { workers, signals: Signals::listen()? })
    }

    /// Waits until all parts have ended. The first failure stops them all.
    pub(super) async fn run(&mut self, task: Task, mut show: impl FnMut()) -> Result<End, Failure> {
        let Task { parts, stop, until, period } = task;
        let mut running = JoinSet::new();
        for part in parts {
            running.spawn_blocking(part);
        }
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let over = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let (mut end, mut result) = (End::Finished, Ok(()));
        loop {
            tokio::select! {
                ended = running.join_next() => match ended {
                    None => return result.map(|()| end),
                    Some(ended) => {
                        if let Err(failure) = ended.unwrap_or_else(|error| Err(panicked(&error))) {
                            stop.cancel();
                            result = result.and(Err(failure));
                        }
                    }
                },
                _ = ticks.tick() => show(),
                () = &mut over, if !stop.is_cancelled() => stop.cancel(),
                () = self.signals.next() => match end {
                    End::Finished => {
                        end = End::Interrupted;
                        stop.cancel();
                    }
                    End::Interrupted | End::Abandoned => return result.map(|()| End::Abandoned),
                },
            }
        }
    }
}

fn panicked(error: &JoinError) -> Failure {
    Failure::other(error.to_string())
}

/// By which a person or a supervisor asks for the end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::local("cannot listen to signals", &error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
