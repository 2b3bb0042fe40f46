//! The disk of a node: small durable states, the commit log, the engine behind it, and the threads that write them.
//!
//! [`NodeStorage::open`] takes the data directory for this process, checks all of it before it changes anything,
//! bumps the generation, replays the log into the engine and returns what the node has to start from.
//! [`NodeStorage::run`] then starts the threads:
//!
//! ```text
//! let storage = NodeStorage::open(&options)?;           // Err: exit with error.exit_code(), print the error
//! let found = storage.found();                          // node, actor, generation, ceiling, membership, peers
//! let engine = storage.engine();                        // Arc<dyn Storage>: load() from the core thread
//! let counters = storage.counters();                    // Arc<Counters>: atomics for /metrics
//! let running = storage.run(Reports { committed, saved, fatal })?;
//! running.commit(&mut commits);                         // from the core thread: drains the Vec
//! running.save(save_id, state);
//! running.shutdown()?;                                  // syncs, clean mark, checkpoint; joins the threads
//! ```
//!
//! The invariant: nothing is reported as committed or saved, and nothing is found in the engine, that a crash
//! could take back (for a periodic commit: a crash of the process alone). Decisions are core's: a record is merged
//! into the engine by `Record::merge` and by nothing else. Unsafe code exists in [`sync_file_range`] only.

