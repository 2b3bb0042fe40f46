//! What clients ask for and are told: levels, requests and the reasons of errors.

use bytes::Bytes;
use keystore_core::causal::OperationId;
use keystore_core::effect::{Causal, Operation, Values};
use keystore_core::partition::{DEFAULT_KEYSPACE, RecordKey};
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::stamp::Stamp;

use crate::error::WireError;
use crate::field::{check_value, sixteen, stamp_bytes};
use crate::v1;

/// The domain of every `google.rpc.ErrorInfo` of this store.
pub const ERROR_DOMAIN: &str = "keystore.dev";

/// The `reason` of an error's `google.rpc.ErrorInfo`.
pub mod reason {
    pub const QUORUM_UNREACHABLE: &str = "QUORUM_UNREACHABLE";
    pub const DRAINING: &str = "DRAINING";
    pub const DISK_FULL: &str = "DISK_FULL";
    pub const OVERLOADED: &str = "OVERLOADED";
    pub const TOO_MANY_SIBLINGS: &str = "TOO_MANY_SIBLINGS";
    pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
    pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    pub const KEYSPACE_UNKNOWN: &str = "KEYSPACE_UNKNOWN";
    pub const NOT_INITIALIZED: &str = "NOT_INITIALIZED";
    pub const WRONG_CLUSTER: &str = "WRONG_CLUSTER";
    pub const STALE_EPOCH: &str = "STALE_EPOCH";
    pub const LAYOUT_REFUSED: &str = "LAYOUT_REFUSED";
}

/// A client's request, checked: the operation and the levels it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    /// `None`: the node's default.
    pub consistency: Option<Consistency>,
    pub durability: Option<Durability>,
}

impl TryFrom<v1::GetRequest> for Request {
    type Error = WireError;

    fn try_from(request: v1::GetRequest) -> Result<Self, WireError> {
        let v1::GetRequest { keyspace, key, consistency } = request;
        Ok(Self {
            operation: Operation::Get { key: record_key(&keyspace, &key)? },
            consistency: consistency_from_wire(consistency)?,
            durability: None,
        })
    }
}

impl TryFrom<v1::PutRequest> for Request {
    type Error = WireError;

    fn try_from(request: v1::PutRequest) -> Result<Self, WireError> {
        let v1::PutRequest { keyspace, key, value, context, consistency, durability, operation_id, ttl_ms } =
            request;
        check_value(&value)?;
        if ttl_ms > TTL_MS_MAX {
            return Err(WireError::TimeToLive(ttl_ms));
        }
        Ok(Self {
            operation: Operation::Put {
                key: record_key(&keyspace, &key)?,
                value,
                ttl_ms: (ttl_ms > 0).then_some(ttl_ms),
                causal: causal(context, &operation_id)?,
            },
            consistency: consistency_from_wire(consistency)?,
            durability: durability_from_wire(durability)?,
        })
    }
}

impl TryFrom<v1::DeleteRequest> for Request {
    type Error = WireError;

    fn try_from(request: v1::DeleteRequest) -> Result<Self, WireError> {
        let v1::DeleteRequest { keyspace, key, context, consistency, durability, operation_id } = request;
        let causal = causal(context, &operation_id)?;
        Ok(Self {
            operation: Operation::Delete { key: record_key(&keyspace, &key)?, causal },
            consistency: consistency_from_wire(consistency)?,
            durability: durability_from_wire(durability)?,
        })
    }
}

impl TryFrom<v1::Operation> for Request {
    type Error = WireError;

    fn try_from(operation: v1::Operation) -> Result<Self, WireError> {
        match operation.operation.ok_or(WireError::Missing("operation"))? {
            v1::operation::Operation::Get(get) => get.try_into(),
            v1::operation::Operation::Put(put) => put.try_into(),
            v1::operation::Operation::Delete(delete) => delete.try_into(),
        }
    }
}

/// What a reader is told: a missing key and a deleted one have no value.
pub fn read_response(read: Values) -> v1::GetResponse {
    let Values { values, context } = read;
    v1::GetResponse { values: values_to_wire(values), context: context.unwrap_or_default() }
}

/// One key of a scan.
pub fn scan_entry(key: &RecordKey, read: Values) -> v1::ScanEntry {
    let Values { values, context } = read;
    v1::ScanEntry {
        key: key.user_key(),
        values: values_to_wire(values),
        context: context.unwrap_or_default(),
    }
}

fn values_to_wire(values: Vec<(Bytes, Stamp)>) -> Vec<v1::Value> {
    values.into_iter().map(|(value, stamp)| v1::Value { value, stamp: stamp_bytes(stamp) }).collect()
}

/// Ten years: a longer one is a unit taken for another.
const TTL_MS_MAX: u64 = 10 * 366 * 86_400_000;

/// More than the context of any record that replicas accept.
const CONTEXT_BYTES_MAX: usize = 64 << 10;

fn causal(context: Bytes, operation_id: &Bytes) -> Result<Causal, WireError> {
    if context.len() > CONTEXT_BYTES_MAX {
        return Err(WireError::ContextLength { found: context.len(), max: CONTEXT_BYTES_MAX });
    }
    let operation = match operation_id.is_empty() {
        true => None,
        false => Some(OperationId(sixteen("operation_id", operation_id)?)),
    };
    Ok(Causal { context: (!context.is_empty()).then_some(context), operation })
}

fn record_key(keyspace: &str, key: &Bytes) -> Result<RecordKey, WireError> {
    Ok(RecordKey::new(keyspace_or_default(keyspace), key)?)
}

/// The keyspace that a request means.
pub fn keyspace_or_default(keyspace: &str) -> &str {
    if keyspace.is_empty() { DEFAULT_KEYSPACE } else { keyspace }
}

/// `None` for unspecified.
pub fn consistency_from_wire(value: i32) -> Result<Option<Consistency>, WireError> {
    match v1::Consistency::try_from(value) {
        Ok(v1::Consistency::Unspecified) => Ok(None),
        Ok(v1::Consistency::One) => Ok(Some(Consistency::One)),
        Ok(v1::Consistency::Quorum) => Ok(Some(Consistency::Quorum)),
        Ok(v1::Consistency::All) => Ok(Some(Consistency::All)),
        Err(_) => Err(WireError::UnknownValue { field: "consistency", found: value }),
    }
}

/// `None` for unspecified.
pub fn durability_from_wire(value: i32) -> Result<Option<Durability>, WireError> {
    match v1::Durability::try_from(value) {
        Ok(v1::Durability::Unspecified) => Ok(None),
        Ok(v1::Durability::Synced) => Ok(Some(Durability::Synced)),
        Ok(v1::Durability::Periodic) => Ok(Some(Durability::Periodic)),
        Err(_) => Err(WireError::UnknownValue { field: "durability", found: value }),
    }
}

pub fn durability_to_wire(durability: Durability) -> v1::Durability {
    match durability {
        Durability::Synced => v1::Durability::Synced,
        Durability::Periodic => v1::Durability::Periodic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_core::partition::KeyError;
    use keystore_core::record::VALUE_BYTES_MAX;

    fn put(keyspace: &str, key: &'static [u8], value_len: usize) -> v1::PutRequest {
        v1::PutRequest {
            keyspace: keyspace.to_owned(),
            key: Bytes::from_static(key),
            value: vec![7; value_len].into(),
            consistency: v1::Consistency::All.into(),
            durability: v1::Durability::Periodic.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_request_without_a_keyspace_means_the_default_one() {
        let request = Request::try_from(put("", b"k", 3)).unwrap();
        let operation = Operation::Put {
            key: RecordKey::new(DEFAULT_KEYSPACE, b"k").unwrap(),
            value: Bytes::from_static(&[7; 3]),
            ttl_ms: None,
            causal: Causal::default(),
        };
        assert_eq!(request.operation, operation);
        assert_eq!(request.consistency, Some(Consistency::All));
        assert_eq!(request.durability, Some(Durability::Periodic));
    }

    #[test]
    fn a_request_that_breaks_a_limit_is_refused() {
        let unknown = v1::PutRequest { consistency: 9, ..put("", b"k", 0) };
        let cases = [
            (put("", b"", 0), WireError::Key(KeyError::KeyLength(0))),
            (put("", &[0; 1025], 0), WireError::Key(KeyError::KeyLength(1025))),
            (
                put("", b"k", VALUE_BYTES_MAX + 1),
                WireError::ValueLength { found: VALUE_BYTES_MAX + 1, max: VALUE_BYTES_MAX },
            ),
            (unknown, WireError::UnknownValue { field: "consistency", found: 9 }),
            (
                v1::PutRequest { operation_id: Bytes::from_static(b"short"), ..put("", b"k", 0) },
                WireError::Length { field: "operation_id", found: 5, expected: 16 },
            ),
            (v1::PutRequest { ttl_ms: u64::MAX, ..put("", b"k", 0) }, WireError::TimeToLive(u64::MAX)),
        ];
        for (request, error) in cases {
            assert_eq!(Request::try_from(request), Err(error));
        }
    }
}
