//! The fields that several messages have: identities, stamps, values.

use bytes::Bytes;
use keystore_core::id::{Incarnation, NodeId};
use keystore_core::record::VALUE_BYTES_MAX;
use keystore_core::stamp::Stamp;

use crate::error::WireError;
use crate::v1;

/// The 16 bytes of an identity or stamp.
pub(crate) fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], WireError> {
    bytes.try_into().map_err(|_| WireError::Length { field, found: bytes.len(), expected: 16 })
}

pub(crate) fn stamp(field: &'static str, bytes: &[u8]) -> Result<Stamp, WireError> {
    sixteen(field, bytes).map(Stamp::from_bytes)
}

pub(crate) fn stamp_bytes(stamp: Stamp) -> Bytes {
    Bytes::copy_from_slice(&stamp.to_bytes())
}

pub(crate) fn node(field: &'static str, bytes: &[u8]) -> Result<NodeId, WireError> {
    sixteen(field, bytes).map(NodeId)
}

pub(crate) fn uuid_bytes(uuid: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(uuid)
}

pub(crate) fn check_value(value: &Bytes) -> Result<(), WireError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(WireError::ValueLength { found: value.len(), max: VALUE_BYTES_MAX });
    }
    Ok(())
}

impl From<Incarnation> for v1::Incarnation {
    fn from(Incarnation { number, id }: Incarnation) -> Self {
        Self { number, id }
    }
}

impl From<v1::Incarnation> for Incarnation {
    fn from(v1::Incarnation { number, id }: v1::Incarnation) -> Self {
        Self { number, id }
    }
}
