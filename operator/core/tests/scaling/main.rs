//! What is done next about the number of nodes, and what is not: one look at a time.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

#[path = "../fixtures/mod.rs"]
mod fixtures;
mod looks;
mod losses;
mod recoveries;
mod replacements;
mod reversals;
mod space;
mod steps;
