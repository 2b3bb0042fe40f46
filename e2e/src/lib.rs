//! Scenarios on a real Kubernetes, and what they are made of.
//!
//! In reading order: the store as a load sees it, the load, how a cluster is reached, the scenarios, and a demonstration of scaling. What a load
//! leaves behind is a history as `keystore-history` has it, which also judges it. All of this is test code, so errors
//! are `anyhow`'s: nobody matches on them, somebody reads them.

pub mod store;
pub mod load;
pub mod harness;
pub mod scenarios;
pub mod run;
pub mod demonstration;
