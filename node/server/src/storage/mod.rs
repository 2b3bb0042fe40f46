//! The disk of a node: small durable states, the commit log, the engine behind it, and the threads that write them.
//!
//! [`NodeStorage::open`] takes the data directory for this process, checks all of it before it changes anything,
//! bumps the generation, replays the log into the engine and returns what the node has to start from.
//! [`NodeStorage::run`] then starts the threads:
//!
//! ```text
//! let storage = NodeStorage::open(&options)?;       // Err: print it, exit with error.exit_code()
//! let found = storage.found();                      // identity, generation, ceiling, membership, peers
//! let engine = storage.engine();                    // Arc<dyn Storage>: engine.load(&key) on the core thread
//! let counters = storage.counters();                // atomics for /metrics
//! let running = storage.run(Reports { committed, saved, fatal })?;
//! let handle = running.handle();                    // for the core thread:
//! handle.commit(&mut commits);                      //   takes all of them
//! handle.save(id, state);
//! running.shutdown()?;                              // does what waits, syncs, marks the log as whole, joins
//! ```
//!
//! The invariant: nothing is reported as committed or saved, and nothing is found in the engine, that a crash
//! could take back (for a periodic commit: a crash of the process alone). Decisions are core's: a record is merged
//! into the engine by `Record::merge` and by nothing else. Unsafe code is in [`sync_file_range`] only.

mod mutant;
mod file;
pub mod sync_file_range;
mod disk_usage;
mod counters;
mod state;
mod log;
mod found;
mod engine;
mod error;
mod data_dir;
mod set_aside;
mod item;
mod sled_engine;
mod sled_lead;
mod snapshot;
mod lsm_engine;
mod memory_engine;
mod memtable;
mod queue;
mod base;
mod buffered_engine;
mod checkpoint;
mod room;
mod committer;
mod historian;
mod saver;
mod open;
mod running;
pub mod fuzzing;

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;

pub use committer::{COMMITS_WAITING_MAX, Committed};
pub use counters::{Count, Counters, Histogram, SECONDS_BOUNDS};
pub use disk_usage::DiskUsage;
pub use engine::{EngineError, EngineKind, EngineSize, LoadError, ScanError, Storage};
pub use error::{FatalError, OpenError};
pub use file::DiskError;
pub use found::{Found, Identity};
pub use log::{LogDamaged, Reason};
pub use open::{NodeStorage, Options, SEGMENT_BYTES_MIN};
pub use running::{Reports, RunningStorage, StorageHandle, UncleanShutdown};
pub use set_aside::{Keeping, SetAside};
pub use state::StateError;
