//! One get, put or delete as it goes over the wire, and its outcome as the caller is told it.

use std::time::Duration;

use bytes::Bytes;
use keystore_core::causal::OperationId;
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::VALUE_BYTES_MAX;
use keystore_core::stamp::Stamp;
use keystore_proto::client::durability_to_wire;
use keystore_proto::v1;
use keystore_proto::v1::operation::Operation as Wire;
use keystore_proto::v1::outcome::Outcome;
use rand::Rng;

use crate::connection::Connection;
use crate::error::{Detail, Error, Reason};
use crate::execute::Ask;
use crate::grpc::CallError;
use crate::options::{Answer, Causal, Context, Read, ReadOptions, StampedValue, WriteOptions, Written};
use crate::verdict::Kind;

const GET: &str = "/keystore.v1.KeyStore/Get";
const PUT: &str = "/keystore.v1.KeyStore/Put";
const DELETE: &str = "/keystore.v1.KeyStore/Delete";

/// One get, put or delete of a [batch](crate::Client::batch).
#[derive(Debug, Clone)]
pub struct Operation {
    pub(crate) wire: Wire,
    pub(crate) key: RecordKey,
    pub(crate) kind: Kind,
    pub(crate) timeout: Option<Duration>,
}

/// The levels that a client asks for where an operation names none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Levels {
    pub consistency: Option<Consistency>,
    pub durability: Option<Durability>,
}

impl Operation {
    /// Fails if no node could do it, as do the others.
    pub fn get(keyspace: &str, key: impl Into<Bytes>, options: ReadOptions) -> Result<Self, Error> {
        let key = key.into();
        let record_key = RecordKey::new(keyspace, &key).map_err(Error::invalid)?;
        let request = v1::GetRequest {
            keyspace: keyspace.to_owned(),
            key,
            consistency: consistency_or_unspecified(options.consistency),
        };
        let timeout = options.timeout;
        Ok(Self { wire: Wire::Get(request), key: record_key, kind: Kind::Read, timeout })
    }

    pub fn put(
        keyspace: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Self, Error> {
        let (key, value) = (key.into(), value.into());
        let record_key = RecordKey::new(keyspace, &key).map_err(Error::invalid)?;
        if value.len() > VALUE_BYTES_MAX {
            let found = value.len();
            return Err(Error::invalid(format!(
                "a value has at most {VALUE_BYTES_MAX} bytes, this one has {found}"
            )));
        }
        let WriteOptions { consistency, durability, timeout, ttl, causal } = options;
        let kind = if causal.is_some() { Kind::RepeatableWrite } else { Kind::Write };
        let (context, operation_id) = causal_to_wire(causal);
        let request = v1::PutRequest {
            keyspace: keyspace.to_owned(),
            key,
            value,
            context,
            consistency: consistency_or_unspecified(consistency),
            durability: durability_or_unspecified(durability),
            operation_id,
            ttl_ms: ttl_ms(ttl)?,
        };
        Ok(Self { wire: Wire::Put(request), key: record_key, kind, timeout })
    }

    pub fn delete(keyspace: &str, key: impl Into<Bytes>, options: WriteOptions) -> Result<Self, Error> {
        let key = key.into();
        let record_key = RecordKey::new(keyspace, &key).map_err(Error::invalid)?;
        let WriteOptions { consistency, durability, timeout, ttl, causal } = options;
        if ttl.is_some() {
            return Err(Error::invalid("a delete has no time to live"));
        }
        let (context, operation_id) = causal_to_wire(causal);
        // Without a context it removes what it finds, and a second time it may find what came after the first.
        let kind = if context.is_empty() { Kind::Write } else { Kind::RepeatableWrite };
        let request = v1::DeleteRequest {
            keyspace: keyspace.to_owned(),
            key,
            context,
            consistency: consistency_or_unspecified(consistency),
            durability: durability_or_unspecified(durability),
            operation_id,
        };
        Ok(Self { wire: Wire::Delete(request), key: record_key, kind, timeout })
    }

    /// Asks for these levels where it names none.
    pub(crate) fn or_levels(mut self, levels: Levels) -> Self {
        let (consistency, durability) = match &mut self.wire {
            Wire::Get(get) => (&mut get.consistency, None),
            Wire::Put(put) => (&mut put.consistency, Some(&mut put.durability)),
            Wire::Delete(delete) => (&mut delete.consistency, Some(&mut delete.durability)),
        };
        if *consistency == i32::from(v1::Consistency::Unspecified) {
            *consistency = consistency_or_unspecified(levels.consistency);
        }
        if let Some(durability) = durability
            && *durability == i32::from(v1::Durability::Unspecified)
        {
            *durability = durability_or_unspecified(levels.durability);
        }
        self
    }

    /// What it adds to the size of its batch, as nodes count it.
    pub(crate) fn carried_bytes(&self) -> usize {
        match &self.wire {
            Wire::Get(get) => get.key.len(),
            Wire::Put(put) => put.key.len() + put.value.len() + put.context.len(),
            Wire::Delete(delete) => delete.key.len() + delete.context.len(),
        }
    }

    /// What the caller is told of an outcome.
    pub(crate) fn answer(&self, outcome: Outcome) -> Result<Answer, Error> {
        let unclear = |problem| self.kind.unclear(Detail::new(Reason::BAD_ANSWER, problem));
        let no_stamp = || unclear("the answer has no valid stamp");
        match (&self.wire, outcome) {
            (Wire::Get(_), Outcome::Got(v1::GetResponse { values, context })) => {
                Ok(Answer::Read(read(values, context).ok_or_else(no_stamp)?))
            }
            (Wire::Put(_), Outcome::Put(response)) => {
                let (stamp, acks, durability) =
                    (response.stamp.clone(), response.acks, response.durability());
                let written = written(&stamp, (acks, durability), response.context);
                Ok(Answer::Written(written.ok_or_else(no_stamp)?))
            }
            (Wire::Delete(_), Outcome::Deleted(response)) => {
                let (stamp, acks, durability) =
                    (response.stamp.clone(), response.acks, response.durability());
                let written = written(&stamp, (acks, durability), response.context);
                Ok(Answer::Written(written.ok_or_else(no_stamp)?))
            }
            _ => Err(unclear("the answer is one to another kind of request")),
        }
    }
}

/// An operation as a call of its own.
pub(crate) struct Single<'a>(pub &'a Wire);

impl Ask<Outcome> for Single<'_> {
    async fn ask(&self, connection: &Connection, timeout: Duration) -> Result<Outcome, CallError> {
        match self.0 {
            Wire::Get(get) => connection.call(GET, get, timeout).await.map(Outcome::Got),
            Wire::Put(put) => connection.call(PUT, put, timeout).await.map(Outcome::Put),
            Wire::Delete(delete) => connection.call(DELETE, delete, timeout).await.map(Outcome::Deleted),
        }
    }
}

/// An operation on a session stream.
pub(crate) struct InSession<'a>(pub &'a Wire);

impl Ask<Outcome> for InSession<'_> {
    async fn ask(&self, connection: &Connection, timeout: Duration) -> Result<Outcome, CallError> {
        connection.call_in_session(self.0, timeout).await
    }
}

pub(crate) fn consistency_or_unspecified(consistency: Option<Consistency>) -> i32 {
    let wire = match consistency {
        None => v1::Consistency::Unspecified,
        Some(Consistency::One) => v1::Consistency::One,
        Some(Consistency::Quorum) => v1::Consistency::Quorum,
        Some(Consistency::All) => v1::Consistency::All,
    };
    wire.into()
}

fn durability_or_unspecified(durability: Option<Durability>) -> i32 {
    durability.map_or(v1::Durability::Unspecified, durability_to_wire).into()
}

/// The context and the operation id; both are empty for a write that is not causal.
fn causal_to_wire(causal: Option<Causal>) -> (Bytes, Bytes) {
    let Some(Causal { context, operation }) = causal else { return (Bytes::new(), Bytes::new()) };
    let OperationId(id) = operation.unwrap_or_else(|| OperationId(rand::rng().random()));
    (context.map_or(Bytes::new(), |context| context.as_bytes().clone()), Bytes::copy_from_slice(&id))
}

/// 0 means for ever, on the wire only. The upper bound is the node's to say.
fn ttl_ms(ttl: Option<Duration>) -> Result<u64, Error> {
    match ttl.map(|ttl| ttl.as_millis()) {
        None => Ok(0),
        Some(0) => Err(Error::invalid("the shortest time to live is 1 ms")),
        Some(ms) => u64::try_from(ms).map_err(Error::invalid),
    }
}

/// `None` if a stamp is none.
pub(crate) fn read(values: Vec<v1::Value>, context: Bytes) -> Option<Read> {
    let value = |v1::Value { value, stamp }| Some(StampedValue { stamp: Stamp::from_slice(&stamp)?, value });
    let values = values.into_iter().map(value).collect::<Option<_>>()?;
    Some(Read { values, context: Context::from_wire(context) })
}

fn written(stamp: &Bytes, (acks, durability): (u32, v1::Durability), context: Bytes) -> Option<Written> {
    let durability = match durability {
        v1::Durability::Synced => Durability::Synced,
        // Promise no more than was said.
        v1::Durability::Periodic | v1::Durability::Unspecified => Durability::Periodic,
    };
    let context = Context::from_wire(context);
    Some(Written { stamp: Stamp::from_slice(stamp)?, acks, durability, context })
}
