//! What a request may ask for, and what it brings back.

use std::time::Duration;

use bytes::Bytes;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::stamp::Stamp;

/// The deadline of requests where neither they nor the client name one.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Which nodes requests are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routing {
    /// To an owner of the key, whose address the cluster tells: one hop less. Every node has to be reachable.
    #[default]
    Direct,
    /// To the given endpoints only: any node coordinates. For clients behind a Service or a port-forward.
    Proxy,
}

/// `None` means the client's default, and in the end the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    pub consistency: Option<Consistency>,
    pub timeout: Option<Duration>,
}

/// `None` means the client's default, and in the end the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    pub consistency: Option<Consistency>,
    pub durability: Option<Durability>,
    pub timeout: Option<Duration>,
}

/// A value and its place in the order of all writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampedValue {
    pub value: Bytes,
    pub stamp: Stamp,
}

/// The answer to a get: one value, or none where the key is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Read {
    pub values: Vec<StampedValue>,
}

impl Read {
    pub fn value(&self) -> Option<&StampedValue> {
        self.values.first()
    }
}

/// The answer to a put or delete that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub stamp: Stamp,
    /// How many replicas are known to hold it.
    pub acks: u32,
    /// The least durable of those.
    pub durability: Durability,
}
