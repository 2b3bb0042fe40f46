//! A storage node: performs what `keystore-core` decides, on real disks and sockets.
//!
//! Modules in reading order: each uses only those before it.

pub mod storage;
pub mod config;
pub mod logs;
pub mod panics;
pub mod clock;
pub mod view;
pub mod inbox;
pub mod memory;
pub mod handle;
pub mod outbox;
pub mod disk;
pub mod metrics;
pub mod about;
pub mod gossip;
pub mod grpc;
pub mod peers;
pub mod services;
pub mod gauges;
pub mod exposition;
pub mod http;
pub mod disk_metrics;
pub mod core_metrics;
pub mod deliver;
pub mod core_loop;
pub mod tasks;
pub mod assembly;
pub mod process;
