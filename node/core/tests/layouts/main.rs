//! Layouts: which may follow which, how a node takes them up, and what shows that each clause of it is kept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod background;
#[path = "../bench/mod.rs"]
mod bench;
mod clauses;
mod deciding;
mod doubting;
mod epochs;
mod leaving;
mod linked;
mod membership;
mod moving;
mod overtaken;
mod recovered;
mod reissued;
mod salvaging;
mod scanning;
mod succession;
mod surviving;
mod unreadable;
