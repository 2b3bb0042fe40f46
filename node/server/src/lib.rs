//! A storage node: performs what `keystore-core` decides, on real disks and sockets.
//!
//! Modules in reading order: each uses only those before it.

pub mod config;
pub mod storage;
mod logs;
mod clock;
mod view;
mod inbox;
mod outbox;
mod handle;
mod disk;
mod metrics;
mod gossip;
mod grpc;
mod peers;
mod services;
mod gauges;
mod http;
