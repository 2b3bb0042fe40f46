//! The messages within a frame: to the wire and back.

use keystore_core::message::{Call, Message, Origin, ReadOutcome, Refusal, Want, Write, WriteOutcome};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record, Version};

use crate::error::WireError;
use crate::field::{check_value, stamp, stamp_bytes};
use crate::v1;
use crate::v1::peer_message::Kind;
use crate::v1::read_answer::Outcome as ReadKind;
use crate::v1::write_answer::Outcome as WriteKind;

/// What messages bear that belong to no request.
const NO_CALL: Call = Call { operation: 0, attempt: 0 };

impl From<Message> for v1::PeerMessage {
    fn from(message: Message) -> Self {
        let (call, kind) = match message {
            Message::Write(write) => (write.call, Kind::Write(write_to_wire(write))),
            Message::WriteAnswer { call, outcome } => {
                (call, Kind::WriteAnswer(write_answer_to_wire(outcome)))
            }
            Message::Read { call, key, want } => {
                let read = v1::ReadMessage { key: key.encoded().clone(), digest: want == Want::Digest };
                (call, Kind::Read(read))
            }
            Message::ReadAnswer { call, outcome } => (call, Kind::ReadAnswer(read_answer_to_wire(outcome))),
            Message::InitAccepted { digest, reply_wanted, decided } => {
                let accepted = v1::InitAcceptedMessage { digest, reply_wanted, decided };
                (NO_CALL, Kind::InitAccepted(accepted))
            }
        };
        Self { operation: call.operation, attempt: call.attempt, kind: Some(kind) }
    }
}

impl TryFrom<v1::PeerMessage> for Message {
    type Error = WireError;

    fn try_from(message: v1::PeerMessage) -> Result<Self, WireError> {
        let v1::PeerMessage { operation, attempt, kind } = message;
        let call = Call { operation, attempt };
        Ok(match kind.ok_or(WireError::Missing("kind"))? {
            Kind::Write(write) => Self::Write(write_from_wire(call, write)?),
            Kind::WriteAnswer(answer) => Self::WriteAnswer { call, outcome: write_answer_from_wire(answer)? },
            Kind::Read(v1::ReadMessage { key, digest }) => Self::Read {
                call,
                key: RecordKey::from_encoded(key)?,
                want: if digest { Want::Digest } else { Want::Full },
            },
            Kind::ReadAnswer(answer) => Self::ReadAnswer { call, outcome: read_answer_from_wire(answer)? },
            Kind::InitAccepted(v1::InitAcceptedMessage { digest, reply_wanted, decided }) => {
                Self::InitAccepted { digest, reply_wanted, decided }
            }
        })
    }
}

fn write_to_wire(write: Write) -> v1::WriteMessage {
    let Write { call: _, key, record, origin, durability } = write;
    v1::WriteMessage {
        key: key.encoded().clone(),
        record: Some(record_to_wire(record)),
        deadline_wall_ms: match origin {
            Origin::Client { deadline_wall_ms } => Some(deadline_wall_ms),
            Origin::Repair => None,
        },
        periodic: durability == Durability::Periodic,
    }
}

fn write_from_wire(call: Call, write: v1::WriteMessage) -> Result<Write, WireError> {
    let v1::WriteMessage { key, record, deadline_wall_ms, periodic } = write;
    Ok(Write {
        call,
        key: RecordKey::from_encoded(key)?,
        record: record_from_wire(record.ok_or(WireError::Missing("record"))?)?,
        origin: match deadline_wall_ms {
            Some(deadline_wall_ms) => Origin::Client { deadline_wall_ms },
            None => Origin::Repair,
        },
        durability: durability_of(periodic),
    })
}

fn durability_of(periodic: bool) -> Durability {
    if periodic { Durability::Periodic } else { Durability::Synced }
}

fn record_to_wire(Record { stamp, body }: Record) -> v1::PeerRecord {
    v1::PeerRecord {
        stamp: stamp_bytes(stamp),
        value: match body {
            Body::Value(value) => Some(value),
            Body::Tombstone => None,
        },
    }
}

fn record_from_wire(record: v1::PeerRecord) -> Result<Record, WireError> {
    let body = match record.value {
        Some(value) => {
            check_value(&value)?;
            Body::Value(value)
        }
        None => Body::Tombstone,
    };
    Ok(Record { stamp: stamp("stamp", &record.stamp)?, body })
}

fn write_answer_to_wire(outcome: WriteOutcome) -> v1::WriteAnswer {
    let outcome = match outcome {
        WriteOutcome::Held(durability) => WriteKind::HeldPeriodic(durability == Durability::Periodic),
        WriteOutcome::Superseded(stamp) => WriteKind::SupersededBy(stamp_bytes(stamp)),
        WriteOutcome::Refused(refusal) => WriteKind::Refused(refusal_to_wire(refusal).into()),
    };
    v1::WriteAnswer { outcome: Some(outcome) }
}

fn write_answer_from_wire(answer: v1::WriteAnswer) -> Result<WriteOutcome, WireError> {
    Ok(match answer.outcome.ok_or(WireError::Missing("outcome"))? {
        WriteKind::HeldPeriodic(periodic) => WriteOutcome::Held(durability_of(periodic)),
        WriteKind::SupersededBy(by) => WriteOutcome::Superseded(stamp("superseded_by", &by)?),
        WriteKind::Refused(refusal) => WriteOutcome::Refused(refusal_from_wire(refusal)?),
    })
}

fn read_answer_to_wire(outcome: ReadOutcome) -> v1::ReadAnswer {
    let outcome = match outcome {
        ReadOutcome::Missing => ReadKind::Missing(true),
        ReadOutcome::Digest(Version { stamp, hash }) => {
            ReadKind::Digest(v1::PeerVersion { stamp: stamp_bytes(stamp), hash })
        }
        ReadOutcome::Full(record) => ReadKind::Full(record_to_wire(record)),
        ReadOutcome::Refused(refusal) => ReadKind::Refused(refusal_to_wire(refusal).into()),
    };
    v1::ReadAnswer { outcome: Some(outcome) }
}

fn read_answer_from_wire(answer: v1::ReadAnswer) -> Result<ReadOutcome, WireError> {
    Ok(match answer.outcome.ok_or(WireError::Missing("outcome"))? {
        // False has no meaning of its own; whoever sends it means something this version does not know.
        ReadKind::Missing(true) => ReadOutcome::Missing,
        ReadKind::Missing(false) => return Err(WireError::Missing("missing")),
        ReadKind::Digest(v1::PeerVersion { stamp: of, hash }) => {
            ReadOutcome::Digest(Version { stamp: stamp("stamp", &of)?, hash })
        }
        ReadKind::Full(record) => ReadOutcome::Full(record_from_wire(record)?),
        ReadKind::Refused(refusal) => ReadOutcome::Refused(refusal_from_wire(refusal)?),
    })
}

fn refusal_to_wire(refusal: Refusal) -> v1::PeerOperationRefusal {
    match refusal {
        Refusal::DeadlinePassed => v1::PeerOperationRefusal::DeadlinePassed,
        Refusal::ClockSkew => v1::PeerOperationRefusal::ClockSkew,
        Refusal::InDoubt => v1::PeerOperationRefusal::InDoubt,
        Refusal::DiskFull => v1::PeerOperationRefusal::DiskFull,
        Refusal::Overloaded => v1::PeerOperationRefusal::Overloaded,
        Refusal::NotReplica => v1::PeerOperationRefusal::NotReplica,
        Refusal::NotInitialized => v1::PeerOperationRefusal::NotInitialized,
    }
}

fn refusal_from_wire(refusal: i32) -> Result<Refusal, WireError> {
    match v1::PeerOperationRefusal::try_from(refusal) {
        Ok(v1::PeerOperationRefusal::DeadlinePassed) => Ok(Refusal::DeadlinePassed),
        Ok(v1::PeerOperationRefusal::ClockSkew) => Ok(Refusal::ClockSkew),
        Ok(v1::PeerOperationRefusal::InDoubt) => Ok(Refusal::InDoubt),
        Ok(v1::PeerOperationRefusal::DiskFull) => Ok(Refusal::DiskFull),
        Ok(v1::PeerOperationRefusal::Overloaded) => Ok(Refusal::Overloaded),
        Ok(v1::PeerOperationRefusal::NotReplica) => Ok(Refusal::NotReplica),
        Ok(v1::PeerOperationRefusal::NotInitialized) => Ok(Refusal::NotInitialized),
        Ok(v1::PeerOperationRefusal::Unspecified) | Err(_) => {
            Err(WireError::UnknownValue { field: "refused", found: refusal })
        }
    }
}
