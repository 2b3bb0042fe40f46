//! The process from its first line to its exit status.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::Event;
use keystore_core::id::{Actor, NodeId};
use keystore_core::node::{Node, Settings, Start};
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use crate::about::{About, SelfAddresses};
use crate::assembly::Parts;
use crate::clock::Clock;
use crate::config::{self, Command, Config, Storage};
use crate::core_loop::{CoreLoop, OUTBOXES_MAX};
use crate::disk::DiskGuard;
use crate::handle::{CoreHandle, Input};
use crate::inbox::{INBOX_MAX, Inbox};
use crate::storage::{
    Committed, DiskError, EngineError, FatalError, Found, Identity, NodeStorage, OpenError, Options, Reports,
    UncleanShutdown,
};
use crate::tasks::{CoreEnd, Signals, TasksError};
use crate::view::View;
use crate::{logs, panics};

const EXIT_FAILED: u8 = 1;
const EXIT_BAD_CONFIGURATION: u8 = 2;
const EXIT_BAD_DATA_DIRECTORY: u8 = 3;

/// How long a process may take to end once it has drained.
const ENDING: Duration = Duration::from_secs(5);

/// Why the process ended other than by draining.
#[derive(Debug, Error)]
enum ProcessError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Unclean(#[from] UncleanShutdown),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error(transparent)]
    Tasks(#[from] TasksError),
}

impl ProcessError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Open(error) => error.exit_code(),
            Self::Tasks(error) if error.is_about_the_disk() => EXIT_BAD_DATA_DIRECTORY,
            Self::Disk(_) | Self::Engine(_) | Self::Unclean(_) | Self::Start(_) | Self::Tasks(_) => {
                EXIT_FAILED
            }
        }
    }
}

/// What `main` does.
pub fn run() -> ExitCode {
    let config = match config::load(std::env::args_os().skip(1), std::env::vars_os()) {
        Ok(Command::Run(config)) => *config,
        Ok(Command::Print(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("keystore-node: {error}");
            return EXIT_BAD_CONFIGURATION.into();
        }
    };
    logs::start(&config.log);
    match run_node(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let exit_code = error.exit_code();
            error!(%error, exit_code, "the node cannot go on");
            exit_code.into()
        }
    }
}

/// From the data directory to the end of the drain.
fn run_node(config: Config) -> Result<(), ProcessError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    // Before a replay that may take long: the kernel keeps from process 1 what it does not handle, so that a pod
    // would never hear that it has to stop. It stops once the replay is over.
    let signals = runtime.block_on(async { Signals::watch() }).map_err(TasksError::Signals)?;
    let storage = NodeStorage::open(&storage_options(&config))?;
    // Not before: a panic of the engine while it opens is the damage of a data directory.
    panics::end_the_process(EXIT_FAILED);
    let parts = start_core(config, storage)?;
    let ended = runtime.block_on(parts.run(signals));
    // Look-ups of names may still be under way on threads that cannot be interrupted.
    runtime.shutdown_background();
    ended?.shutdown()?;
    info!("node stopped, everything is on disk");
    Ok(())
}

/// Starts the threads: those of the disk and the one of the core.
fn start_core(config: Config, storage: NodeStorage) -> Result<Parts, ProcessError> {
    let clock = Clock::new(config.clock.offset_ms);
    let inbox = Arc::new(Inbox::new(INBOX_MAX));
    let (view, view_seen) = watch::channel(Arc::new(View::starting()));
    let (stopping, stopping_seen) = watch::channel(false);
    let (gossiped, gossiped_seen) = watch::channel(Arc::default());
    let (ours, ours_seen) = watch::channel(SelfAddresses::of(&config, None));
    let (outboxes, outboxes_seen) = mpsc::channel(OUTBOXES_MAX);
    let (ending, ended) = oneshot::channel();
    let (engine, counters, history) = (storage.engine(), storage.counters(), storage.history());
    let start = start_of(storage.found(), &config);
    let Start { node, actor, generation, .. } = start;
    let disk_guard = DiskGuard::new(config.data_dir.clone(), Arc::clone(&engine), &config.storage)?;
    let core_loop = CoreLoop {
        node: Node::new(start, clock.now()),
        engine,
        disk: storage.run(reports(&inbox))?,
        inbox: Arc::clone(&inbox),
        clock,
        outboxes,
        view,
        frame_bytes_max: config.limits.frame_bytes,
    };
    // The receiver is gone only if the process is ending already.
    let run = move || drop(ending.send(core_loop.run()));
    std::thread::Builder::new().name("core".to_owned()).spawn(run)?;
    let data_dir = config.data_dir.display();
    info!(%node, %generation, %data_dir, version = env!("CARGO_PKG_VERSION"), "node starts");
    let about = About {
        node,
        actor,
        generation,
        core: CoreHandle::new(inbox, view_seen, stopping_seen, clock),
        gossiped: gossiped_seen,
        ours: ours_seen,
        disk: disk_guard.watch(),
        history,
        config: Arc::new(config),
    };
    let core_end = CoreEnd { stopping, ended };
    Ok(Parts { about, gossiped, ours, outboxes: outboxes_seen, core_end, disk_guard, counters })
}

fn storage_options(config: &Config) -> Options {
    let Storage { engine, cache_bytes, segment_bytes, checkpoint_bytes, sync_interval_ms, .. } =
        config.storage;
    Options {
        data_dir: config.data_dir.clone(),
        new_identity: Identity {
            node: NodeId(rand::random()),
            actor: Actor(rand::random()),
            cluster_name: config.gossip.cluster.clone(),
        },
        engine: engine.into(),
        segment_bytes,
        checkpoint_bytes,
        cache_bytes,
        sync_interval: Duration::from_millis(sync_interval_ms),
        // A pod that is replaced by force begins before the one it replaces has drained.
        lock_patience: Duration::from_millis(config.drain.grace_ms + config.drain.timeout_ms) + ENDING,
    }
}

fn start_of(found: &Found, config: &Config) -> Start {
    let Found {
        identity,
        generation,
        lineage,
        trusted_since,
        stamp_ceiling_ms,
        membership,
        peers,
        votes,
        merges,
        history: _,
        hints,
        highest,
    } = found.clone();
    Start {
        node: identity.node,
        actor: identity.actor,
        generation,
        lineage,
        stamp_ceiling_ms,
        membership,
        peers,
        votes,
        merges,
        trusted_since,
        hints,
        highest,
        settings: Settings {
            skew_ms_max: config.clock.skew_ms_max,
            requests_max: config.limits.requests,
            writes_max: config.limits.writes,
            hint_bytes_max: config.limits.hint_bytes,
            hint_age_ms_max: config.limits.hint_age_ms,
            background_bytes_per_s: config.limits.background_bytes_per_s,
            read: config.consistency.read.into(),
            write: config.consistency.write.into(),
            durability: config.storage.durability.into(),
            ..Settings::default()
        },
    }
}

/// The disk's answers go back into the core's inbox; its failures end the process at once.
fn reports(inbox: &Arc<Inbox<Input>>) -> Reports {
    let (for_commits, for_saves) = (Arc::clone(inbox), Arc::clone(inbox));
    Reports {
        committed: Box::new(move |committed: Vec<Committed>| {
            let events = committed.into_iter();
            let events = events.map(|(commit, outcome)| Event::Committed { commit, outcome });
            for_commits.push(Input::Events(events.collect()));
        }),
        saved: Box::new(move |saves| {
            for save in saves {
                for_saves.push(Input::Event(Event::Saved { save }));
            }
        }),
        fatal: Arc::new(|error: &FatalError| {
            error!(%error, exit_code = EXIT_FAILED, "the disk has failed, nothing more is acknowledged");
            std::process::exit(EXIT_FAILED.into());
        }),
    }
}

#[cfg(test)]
mod tests {
    use keystore_core::effect::Hint;
    use keystore_core::history::History;
    use keystore_core::id::{Epoch, Generation, Nonce};
    use keystore_core::partition::RecordKey;
    use keystore_core::paxos::Votes;
    use keystore_core::quorum::{Consistency, Durability};
    use keystore_core::stamp::Stamp;
    use keystore_core::transfer::Merges;

    use super::*;
    use crate::config::{Level, Levels, Limits};

    #[test]
    fn a_node_starts_with_all_that_it_found_and_was_told() {
        let mut config = Config {
            limits: Limits {
                requests: 21,
                writes: 22,
                hint_bytes: 23,
                hint_age_ms: 24,
                background_bytes_per_s: 65_536,
                ..Config::default().limits
            },
            consistency: Levels { read: Level::One, write: Level::All },
            ..Config::default()
        };
        (config.clock.skew_ms_max, config.storage.durability) = (25, config::Durability::Periodic);
        let found = Found {
            identity: Identity { node: NodeId([1; 16]), actor: Actor(2), cluster_name: "demo".to_owned() },
            generation: Generation(4),
            trusted_since: Generation(3),
            lineage: [Nonce(5)].into_iter().collect(),
            stamp_ceiling_ms: 6,
            membership: None,
            peers: [(NodeId([7; 16]), (Generation(8), Nonce(9)))].into(),
            votes: Votes { epoch: Epoch(10), ..Votes::default() },
            merges: Merges { phase: Epoch(11), ..Merges::default() },
            history: History::default(),
            hints: vec![Hint {
                target: NodeId([12; 16]),
                key: RecordKey::new("default", b"key").unwrap(),
                since_ms: 13,
            }],
            highest: Some(Stamp::LOWEST),
        };
        let Start {
            node,
            actor,
            generation,
            lineage,
            stamp_ceiling_ms,
            membership,
            peers,
            votes,
            merges,
            trusted_since,
            hints,
            highest,
            settings,
        } = start_of(&found, &config);
        let heard = Found {
            identity: Identity { node, actor, ..found.identity.clone() },
            generation,
            trusted_since,
            lineage,
            stamp_ceiling_ms,
            membership,
            peers,
            votes,
            merges,
            history: found.history.clone(),
            hints,
            highest,
        };
        assert_eq!(heard, found);
        let told = Settings {
            skew_ms_max: 25,
            requests_max: 21,
            writes_max: 22,
            hint_bytes_max: 23,
            hint_age_ms_max: 24,
            background_bytes_per_s: 65_536,
            read: Consistency::One,
            write: Consistency::All,
            durability: Durability::Periodic,
            ..Settings::default()
        };
        assert_eq!(settings, told);
    }

    #[test]
    fn what_comes_behind_the_stop_is_answered_and_what_comes_later_is_turned_away() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
        let storage = NodeStorage::open(&storage_options(&config)).unwrap();
        let (clock, inbox) = (Clock::new(0), Arc::new(Inbox::new(INBOX_MAX)));
        let (outboxes, _outboxes_seen) = mpsc::channel(OUTBOXES_MAX);
        let core_loop = CoreLoop {
            node: Node::new(start_of(storage.found(), &config), clock.now()),
            engine: storage.engine(),
            disk: storage.run(reports(&inbox)).unwrap(),
            inbox: Arc::clone(&inbox),
            clock,
            outboxes,
            view: watch::channel(Arc::new(View::starting())).0,
            frame_bytes_max: config.limits.frame_bytes,
        };
        let hello = || {
            let (answer, answered) = oneshot::channel();
            (Input::HelloTo { peer: NodeId([2; 16]), answer }, answered)
        };
        let (behind, mut answered) = hello();
        inbox.push(Input::Stop);
        inbox.push(behind);
        core_loop.run().unwrap().shutdown().unwrap();
        assert!(matches!(answered.try_recv(), Ok(None)), "this node has no layout yet");
        inbox.offer(hello().0).unwrap_err();
    }
}
