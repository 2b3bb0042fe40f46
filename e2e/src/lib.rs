//! Scenarios on a real Kubernetes, and what they are made of.
//!
//! In reading order: what a run is written down in, what judges it, what makes it, how a cluster is reached, and
//! the scenarios. The first two are pure and depend on the standard library only.

pub mod history;
pub mod checker;
pub mod store;
pub mod load;
