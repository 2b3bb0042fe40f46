//! Every decoder of bytes from outside, as plain functions that are fed with what nobody would send.
//!
//! A target takes bytes and never panics; what it decodes, it encodes and decodes again, and the two have to be the
//! same. There is no instrumented compiler here: what tells one input from another is the *signature* that a target
//! returns, the shape of its result, and an input with a new one is kept and mutated further. The corpus holds a file
//! for each input worth beginning with, the samples of old formats among them.
//!
//! `cargo test` replays the corpus and runs a few thousand seeded mutations of each target; `keystore-fuzz` goes on
//! for as long as it is told.

pub mod mutate;
pub mod targets;
pub mod corpus;
pub mod run;
