//! Every decision of the operator, and no I/O: observed → validated → plan → desired objects → status.
//!
//! Time and fresh identities come in as arguments, maps are ordered, so that each decision is a table in a test.
//! Reading and writing Kubernetes and talking to nodes is `operator/controller`'s, which has no choices left.
//! Invariant: truth comes from the layout and from what nodes answer; absent or unreachable means unknown.

pub mod names;
pub mod observed;
mod outdated;
pub mod validate;
pub mod identity;
pub mod build;
pub mod differ;
pub mod rollout;
pub mod children;
pub mod hold;
mod members;
mod absence;
mod space;
mod aim;
mod stage;
mod loss;
mod removal;
mod undecidable;
pub mod scaling;
pub mod plan;
pub mod invalid;
pub mod health;
pub mod trouble;
pub mod conditions;
pub mod status;
pub mod events;
pub mod pace;
pub mod lease;
