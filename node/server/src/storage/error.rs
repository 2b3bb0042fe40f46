//! Why a node cannot start from its data directory, and why it cannot go on.

use std::path::PathBuf;

use keystore_core::id::NodeId;
use thiserror::Error;

use super::engine::{EngineError, EngineKind};
use super::file::DiskError;
use super::log::LogDamaged;
use super::state::StateError;

/// Why the data directory is not used. Except after [`OpenError::Disk`] and [`OpenError::Engine`], nothing in it
/// was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("{} is in use by another process; a data directory is for one node", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} is not part of a node's data directory; nothing was changed. Point data_dir at an empty directory \
         or at one that a node has made",
        .0.display()
    )]
    Foreign(PathBuf),
    #[error(
        "{} belongs to a node whose identity file is missing; nothing was changed. Restore the file \"identity\"",
        .0.display()
    )]
    NoIdentity(PathBuf),
    #[error(
        "{} cannot be trusted: {problem}; nothing was changed. Restore it from this very disk if you can; \
         the others serve on without this node",
        path.display()
    )]
    State { path: PathBuf, problem: StateError },
    #[error(
        "{} belongs to cluster \"{found}\", and this node is configured for \"{expected}\"; nothing was changed. \
         Check data_dir and gossip.cluster",
        path.display()
    )]
    OtherCluster { path: PathBuf, found: String, expected: String },
    #[error(
        "the layout in {} does not name node {node}, whose directory this is: files of two nodes are mixed; \
         nothing was changed",
        path.display()
    )]
    OtherNode { path: PathBuf, node: NodeId },
    #[error(
        "{} was made with the storage engine \"{found}\", and this node is configured for \"{expected}\"; nothing \
         was changed. Set storage.engine back (on Kubernetes: delete the resource, its volumes are kept, and apply it with \
         the engine that it was created with)",
        path.display()
    )]
    OtherEngine { path: PathBuf, found: EngineKind, expected: EngineKind },
    #[error(transparent)]
    LogDamaged(#[from] LogDamaged),
    #[error(
        "the storage engine in {} has lost records: it holds those up to number {found}, and those up to {expected} \
         had been made durable. Keep the directory; the others serve on without this node",
        path.display()
    )]
    EngineBehind { path: PathBuf, found: u64, expected: u64 },
    #[error("the storage engine in {} cannot be read: {source}. Keep the directory; the others serve on without this node", path.display())]
    EngineDamaged { path: PathBuf, source: EngineError },
    #[error("storage.segment_bytes is {found}, and the largest record needs {min}")]
    SegmentTooSmall { found: u64, min: u64 },
    #[error(transparent)]
    Engine(EngineError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl OpenError {
    /// The exit status of a process that stops because of this: 3 for a directory that must not be used, 2 for a
    /// bad setting, 1 for anything that may pass.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InUse(_)
            | Self::Foreign(_)
            | Self::NoIdentity(_)
            | Self::State { .. }
            | Self::OtherCluster { .. }
            | Self::OtherNode { .. }
            | Self::OtherEngine { .. }
            | Self::LogDamaged(_)
            | Self::EngineBehind { .. }
            | Self::EngineDamaged { .. } => 3,
            Self::SegmentTooSmall { .. } => 2,
            Self::Engine(_) | Self::Disk(_) => 1,
        }
    }
}

/// A write or sync that failed: what is on disk is not known any more, so the process ends at once and nothing is
/// acknowledged after it. The next start finds out.
#[derive(Debug, Error)]
pub enum FatalError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the thread \"{0}\" has panicked")]
    Panicked(&'static str),
}
