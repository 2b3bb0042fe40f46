//! Scenarios on a real Kubernetes, and what they are made of.
//!
//! In reading order: what a run is written down in, what judges it, what makes it, how a cluster is reached, and
//! the scenarios. The first two are pure and depend on the standard library only. All of it is test code, so errors
//! are `anyhow`'s: nobody matches on them, somebody reads them.

pub mod history;
pub mod checker;
pub mod store;
pub mod load;
pub mod harness;
pub mod scenarios;
pub mod run;
