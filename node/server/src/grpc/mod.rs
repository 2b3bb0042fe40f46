//! The gRPC services and how they are served.

mod admin;
mod ask;
mod batch;
mod health;
mod keystore;
mod outcome;
mod received;
mod unsent;
mod scan;
mod serve;
mod session;
mod timeout;
mod turns;

use std::time::Duration;

use keystore_core::causal::RECORD_BYTES_MAX;
use keystore_core::message::PAGE_BYTES_MAX;

use crate::config::FRAME_BYTES_MAX;
use batch::BATCH_BYTES_MAX;

pub use admin::AdminService;
pub use health::{client_health, follow_readiness, peer_health};
pub use keystore::KeyStoreService;
pub use received::{Kind, Received};
pub use serve::{Listener, ServeError, serve_each};
pub use unsent::keep_until_sent;

/// What may be in flight to this side before it has been read.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// On one stream.
    pub stream: u32,
    /// On all streams of a connection together.
    pub connection: u32,
}

/// Between nodes, one stream a connection: two of the largest values, so that neither a value nor a batch of frames
/// stalls for an acknowledgement.
pub const PEER_WINDOWS: Windows = Windows { stream: 2 << 20, connection: 2 << 20 };
/// From clients: what one stream may pin in memory before it is read is small, since there are many of them. h2 counts
/// each unread HTTP/2 frame below 256 bytes by what it lacks, and ends a connection where that comes to half of its
/// window. A session that is not read from for a while, full of the smallest requests (of 13 bytes), has to run into its
/// own window before that, and so have eight of them on one connection: 8 × 64 KiB / 13 × 243 is below 20 MiB / 2.
pub const CLIENT_WINDOWS: Windows = Windows { stream: 64 << 10, connection: 20 << 20 };
/// A frame is closed once it has `limits.frame_bytes`; its last message may hold the largest record there can be, or
/// a page of a scan, and what is not counted of it is far less than the rest.
pub const FRAME_DECODED_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX + RECORD_BYTES_MAX + PAGE_BYTES_MAX;
/// Twice what a batch may have, so that one that is somewhat too large is told so in a sentence.
pub const REQUEST_DECODED_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
/// A machine that is gone without a word is noticed after both of these; a process that dies closes its sockets.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
