//! The decisions of the store, and nothing else: no clock, no file, no socket, no thread, no randomness.
//!
//! [`node::Node`] is a state machine: `step(event, now) → effects`. A process drives it with real disks and
//! sockets, the simulation with made-up ones; both run exactly this code. Modules in reading order: each uses
//! only those before it.

pub mod mutant;
pub mod id;
pub mod partition;
pub mod stamp;
pub mod causal;
pub mod record;
pub mod quorum;
pub mod ring;
pub mod placement;
pub mod layout;
pub mod succession;
pub mod recovery;
pub mod history;
pub mod paxos;
pub mod held;
pub mod message;
pub mod peers;
pub mod effect;
pub mod init;
mod counters;
mod budget;
mod pace;
mod context;
mod doubt;
pub mod transfer;
mod clearing;
mod replica;
mod giving;
mod gathering;
mod write_back;
mod write;
mod read;
mod causal_write;
mod scan;
mod coordinator;
mod hints;
pub mod node;
