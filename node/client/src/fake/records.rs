//! What a fake cluster holds: registers and siblings, by the rules of core, without replicas.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use keystore_core::causal::{Change, Context, DotActor, OperationId, Siblings};
use keystore_core::effect::{Causal, Operation, Values};
use keystore_core::id::Actor;
use keystore_core::layout::KeyspaceMode;
use keystore_core::partition::RecordKey;
use keystore_core::stamp::Stamp;
use keystore_proto::client::{read_response, reason, scan_entry};
use keystore_proto::v1;
use keystore_proto::v1::outcome::Outcome;
use tonic::{Code, Status};

use super::{KEYSPACES, outcome};

/// How many keys a page of a scan has.
pub(super) const PAGE_KEYS: usize = 3;

#[derive(Default)]
pub(super) struct Records {
    registers: BTreeMap<RecordKey, Register>,
    siblings: BTreeMap<RecordKey, Siblings>,
    last_stamp: u64,
    pub writes_applied: usize,
}

struct Register {
    stamp: Stamp,
    value: Option<Bytes>,
    expires_ms: Option<u64>,
}

/// A write with its stamp.
struct Write {
    stamp: Stamp,
    key: RecordKey,
    value: Option<Bytes>,
    expires_ms: Option<u64>,
    causal: Causal,
}

impl Records {
    pub(super) fn perform(&mut self, actor: Actor, operation: Operation) -> Result<Outcome, Status> {
        let (key, value, ttl_ms, causal) = match operation {
            Operation::Get { key } => return Ok(Outcome::Got(read_response(self.read(&key)?))),
            Operation::Put { key, value, ttl_ms, causal } => (key, Some(value), ttl_ms, causal),
            Operation::Delete { key, causal } => (key, None, None, causal),
            Operation::Scan { .. } => return Err(Status::invalid_argument("a scan is a call of its own")),
        };
        self.last_stamp += 1;
        let stamp = Stamp::new(self.last_stamp, 0, actor);
        let expires_ms = ttl_ms.map(|ttl_ms| now_ms() + ttl_ms);
        let is_put = value.is_some();
        let write = Write { stamp, key, value, expires_ms, causal };
        let context = match mode(write.key.keyspace())? {
            KeyspaceMode::Lww => self.write_register(write)?,
            KeyspaceMode::Siblings => self.write_sibling(write)?,
        };
        self.writes_applied += 1;
        let stamp = Bytes::copy_from_slice(&stamp.to_bytes());
        let (acks, durability) = (3, v1::Durability::Synced.into());
        Ok(match is_put {
            true => Outcome::Put(v1::PutResponse { stamp, context, acks, durability }),
            false => Outcome::Deleted(v1::DeleteResponse { stamp, context, acks, durability }),
        })
    }

    fn write_register(&mut self, write: Write) -> Result<Bytes, Status> {
        let Write { stamp, key, value, expires_ms, causal } = write;
        if causal.context.is_some() || causal.operation.is_some() {
            return Err(bad_context());
        }
        self.registers.insert(key, Register { stamp, value, expires_ms });
        Ok(Bytes::new())
    }

    fn write_sibling(&mut self, write: Write) -> Result<Bytes, Status> {
        let Write { stamp, key, value, expires_ms, causal } = write;
        let siblings = self.siblings.entry(key.clone()).or_default();
        let context = match causal.context {
            Some(token) => Context::from_token(&key, &token).map_err(|_| bad_context())?,
            None if value.is_none() => siblings.context().clone(),
            None => Context::default(),
        };
        let mut seen = context.clone();
        let operation = causal.operation.unwrap_or(OperationId(stamp.to_bytes()));
        let change = Change { stamp, operation, context, value, expires_ms };
        let minted = siblings.mint(DotActor(1), change);
        let dot = minted.map_err(|_| outcome(Code::ResourceExhausted, reason::TOO_MANY_SIBLINGS, 0, 2))?;
        if let Some(dot) = dot {
            seen.insert(dot);
        }
        Ok(seen.to_token(&key))
    }

    fn read(&self, key: &RecordKey) -> Result<Values, Status> {
        match mode(key.keyspace())? {
            KeyspaceMode::Lww => Ok(self.registers.get(key).map_or(Values::default(), read_register)),
            KeyspaceMode::Siblings => {
                Ok(self.siblings.get(key).map_or(Values::default(), |siblings| read_siblings(key, siblings)))
            }
        }
    }

    /// The pages of a scan, in the order of real nodes.
    pub(super) fn scan(&self, request: &v1::ScanRequest) -> Result<Vec<v1::ScanResponse>, Status> {
        let keys: Vec<_> = match mode(&request.keyspace)? {
            KeyspaceMode::Lww => self.registers.keys().collect(),
            KeyspaceMode::Siblings => self.siblings.keys().collect(),
        };
        let mut keys: Vec<_> = keys
            .into_iter()
            .filter(|key| key.keyspace() == request.keyspace && key.user_key().starts_with(&request.prefix))
            .collect();
        keys.sort_by_key(|key| key.place());
        let after = RecordKey::new(&request.keyspace, &request.after).ok();
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let mut entries = Vec::new();
        for key in keys {
            if after.as_ref().is_none_or(|after| key.place() > after.place()) {
                let values = self.read(key)?;
                if !values.values.is_empty() {
                    entries.push(scan_entry(key, values));
                }
            }
        }
        entries.truncate(limit);
        let page = |page: &[v1::ScanEntry]| v1::ScanResponse { entries: page.to_vec() };
        Ok(entries.chunks(PAGE_KEYS).map(page).collect())
    }
}

fn read_register(register: &Register) -> Values {
    let Register { stamp, value, expires_ms } = register;
    let value = value.as_ref().filter(|_| expires_ms.is_none_or(|expires_ms| expires_ms > now_ms()));
    Values { values: value.map(|value| (value.clone(), *stamp)).into_iter().collect(), context: None }
}

fn read_siblings(key: &RecordKey, siblings: &Siblings) -> Values {
    let mut siblings = siblings.clone();
    siblings.expire(now_ms());
    let values = siblings.distinct().iter().map(|sibling| (sibling.value.clone(), sibling.stamp)).collect();
    Values { values, context: Some(siblings.context().to_token(key)) }
}

fn mode(keyspace: &str) -> Result<KeyspaceMode, Status> {
    let known = KEYSPACES.iter().find(|(name, _)| *name == keyspace);
    let known = known.ok_or_else(|| outcome(Code::NotFound, reason::KEYSPACE_UNKNOWN, 0, 0));
    known.map(|(_, mode)| *mode)
}

fn bad_context() -> Status {
    outcome(Code::InvalidArgument, reason::INVALID_ARGUMENT, 0, 0)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
