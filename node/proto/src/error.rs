//! Why a message from outside is not what it should be.

use keystore_core::partition::KeyError;
use thiserror::Error;

/// A message that breaks a promise of its type. Nothing of it has been used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("the field \"{0}\" is missing")]
    Missing(&'static str),
    #[error("the field \"{field}\" has {found} bytes, not {expected}")]
    Length { field: &'static str, found: usize, expected: usize },
    #[error("the field \"{field}\" has the value {found}, which this version does not know")]
    UnknownValue { field: &'static str, found: i32 },
    #[error("a value has at most {max} bytes, this one has {found}")]
    ValueLength { found: usize, max: usize },
    #[error(transparent)]
    Key(#[from] KeyError),
}
