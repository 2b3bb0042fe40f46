//! The client of a KeyStore cluster: its KeyStore and Admin services, with outcomes that can be relied upon.
//!
//! It routes requests to owners (or, as a proxy's client, to the given endpoints only), keeps deadlines, and
//! retries by itself only reads, writes that surely were not applied, and in keyspaces of mode siblings those that
//! nodes know again by their operation id (see [`Causal`]). It knows nothing of Kubernetes and decides
//! nothing about data. The invariant of the crate: an error of which [`Error::surely_not_applied`] is true means
//! that no replica will ever show the write, and any other error of a write means that one may.
//!
//! ```no_run
//! # async fn example() -> Result<(), keystore_client::Error> {
//! use keystore_client::{Client, ReadOptions, WriteOptions};
//! let client = Client::builder().endpoints(["127.0.0.1:7400"]).connect().await?;
//! let written = client.put("default", "greeting", "hello", WriteOptions::default()).await?;
//! let read = client.get("default", "greeting", ReadOptions::default()).await?;
//! assert!(read.value().is_some_and(|value| value.stamp >= written.stamp));
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order; each uses only those before it.

mod error;
mod options;
mod grpc;
mod session;
mod connection;
mod node;
mod verdict;
mod pool;
mod routes;
mod trail;
mod router;
mod execute;
mod operation;
mod client;
mod batch;
mod scan;
mod status;
mod admin;
pub mod init;
#[cfg(feature = "fake")]
pub mod fake;

pub use admin::AdminClient;
pub use batch::{BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX};
pub use client::{Client, ClientBuilder};
pub use error::{Detail, Error, Reason};
pub use keystore_core::causal::OperationId;
pub use keystore_core::history::{Changes, Difference, Entry as HistoryEntry, History};
pub use keystore_core::id::{ClusterId, Epoch, Incarnation, NodeId};
pub use keystore_core::layout::{KeyspaceMode, Layout, LayoutError, Member, Phase, is_keyspace_name};
pub use keystore_core::node::NodeState;
pub use keystore_core::partition::{DEFAULT_KEYSPACE, Partition, PartitionCount};
pub use keystore_core::quorum::{Consistency, Durability};
pub use keystore_core::record::VALUE_BYTES_MAX;
pub use keystore_core::recovery::{Attempt, Left, Losses, RecoveryError, plan_attempt};
pub use keystore_core::ring::Ring;
pub use keystore_core::stamp::Stamp;
pub use keystore_core::succession::{Change, Step, SuccessionError, check_step};
pub use keystore_proto::admin::node_state_name;
pub use operation::Operation;
pub use options::{
    Answer, Causal, Context, Entry, Patience, Read, ReadOptions, Routing, ScanOptions, StampedValue,
    WriteOptions, Written,
};
pub use routes::{RouteNode, Routes};
pub use scan::Scan;
pub use status::{
    DiskStatus, DoubtedKey, DoubtedPartition, HintStatus, NodeStatus, PeerStatus, TransferStatus,
};
