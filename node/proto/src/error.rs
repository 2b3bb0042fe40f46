//! Why a message from outside is not what it should be.

use keystore_core::causal::CausalError;
use keystore_core::partition::KeyError;
use keystore_core::record::RecordError;
use thiserror::Error;

use crate::layout::LayoutWireError;

/// A message that breaks a promise of its type. Nothing of it has been used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("the field \"{0}\" is missing")]
    Missing(&'static str),
    #[error("the field \"{field}\" has {found} bytes, not {expected}")]
    Length { field: &'static str, found: usize, expected: usize },
    #[error("the field \"{field}\" has the value {found}, which this version does not know")]
    UnknownValue { field: &'static str, found: i32 },
    #[error("messages that were packed cannot be unpacked: {0}")]
    Packed(String),
    #[error("a value has at most {max} bytes, this one has {found}")]
    ValueLength { found: usize, max: usize },
    #[error("a record of kind {0}, which this version does not know")]
    RecordKind(u32),
    #[error("partition {0} does not exist")]
    Partition(u32),
    #[error("a context has at most {max} bytes, this one has {found}")]
    ContextLength { found: usize, max: usize },
    #[error("the time to live is 1 ms to 10 years, not {0} ms")]
    TimeToLive(u64),
    #[error("a scan returns at most {max} keys a page, not {found}")]
    ScanLimit { found: u32, max: u32 },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the context cannot be used: {0}")]
    Context(#[from] CausalError),
    #[error("the layout cannot be used: {0}")]
    Layout(Box<LayoutWireError>),
}
