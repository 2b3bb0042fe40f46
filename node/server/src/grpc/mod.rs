//! The gRPC services and how they are served.

mod admin;
mod health;
mod keystore;
mod outcome;
mod serve;
mod timeout;

use std::time::Duration;

pub use admin::AdminService;
pub use health::{client_health, follow_readiness, peer_health};
pub use keystore::KeyStoreService;
pub use serve::{Listener, ServeError, serve_each};

/// What may be in flight to this side before it has been read, on one stream and on one connection: two of the
/// largest values, so that neither a value nor a batch of frames stalls for an acknowledgement.
pub const WINDOW_BYTES: u32 = 2 << 20;
/// A frame is closed once it has `limits.frame_bytes` (at most 4 MiB); its last message may hold a whole value.
pub const FRAME_DECODED_BYTES_MAX: usize = 8 << 20;
/// A machine that is gone without a word is noticed after both of these; a process that dies closes its sockets.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
