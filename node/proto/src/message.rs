//! The messages within a frame: to the wire and back.

use keystore_core::causal::{Change, Context, Dot, DotActor, OperationId};
use keystore_core::id::{Generation, Nonce};
use keystore_core::message::{
    Call, Message, Mint, MintOutcome, Noted, Origin, ReadOutcome, Refusal, Want, Write, WriteOutcome,
};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record, Version};

use crate::error::WireError;
use crate::field::{check_value, node, sixteen, stamp, stamp_bytes, uuid_bytes};
use crate::scan;
use crate::succession;
use crate::v1;
use crate::v1::mint_answer::Outcome as MintKind;
use crate::v1::peer_message::Kind;
use crate::v1::read_answer::Outcome as ReadKind;
use crate::v1::write_answer::Outcome as WriteKind;

/// What messages bear that belong to no request.
const NO_CALL: Call = Call { operation: 0, attempt: 0 };

impl From<Message> for v1::PeerMessage {
    fn from(message: Message) -> Self {
        let mut known = Vec::new();
        let (call, noted, kind) = match message {
            Message::Write(write) => (write.call, Noted::new(), Kind::Write(write_to_wire(write))),
            Message::WriteAnswer { call, outcome, noted } => {
                (call, noted, Kind::WriteAnswer(write_answer_to_wire(outcome)))
            }
            Message::Mint(mint) => (mint.call, Noted::new(), Kind::Mint(mint_to_wire(mint))),
            Message::MintAnswer { call, outcome, noted } => {
                (call, noted, Kind::MintAnswer(mint_answer_to_wire(outcome)))
            }
            Message::Read { call, key, want } => {
                let read = v1::ReadMessage { key: key.encoded().clone(), digest: want == Want::Digest };
                (call, Noted::new(), Kind::Read(read))
            }
            Message::ReadAnswer { call, outcome, noted } => {
                (call, noted, Kind::ReadAnswer(read_answer_to_wire(outcome)))
            }
            Message::Scan { call, range, held } => {
                (call, Noted::new(), Kind::Scan(scan::scan_to_wire(range, held)))
            }
            Message::Salvage { call, range } => {
                (call, Noted::new(), Kind::Salvage(scan::scan_to_wire(range, None)))
            }
            Message::ScanAnswer { call, outcome, noted } => {
                (call, noted, Kind::ScanAnswer(scan::answer_to_wire(outcome)))
            }
            Message::Hint { target, key } => {
                let hint = v1::HintMessage { target: uuid_bytes(&target.0), key: key.encoded().clone() };
                (NO_CALL, Noted::new(), Kind::Hint(hint))
            }
            Message::InitAccepted { digest, reply_wanted, decided } => {
                let accepted = v1::InitAcceptedMessage { digest, reply_wanted, decided };
                (NO_CALL, Noted::new(), Kind::InitAccepted(accepted))
            }
            Message::Layout { layout, identities } => {
                known = identities;
                (NO_CALL, Noted::new(), Kind::Layout(v1::Layout::from(&*layout)))
            }
            Message::Standing(standing) => {
                (NO_CALL, Noted::new(), Kind::Standing(succession::standing_to_wire(&standing)))
            }
            Message::Paxos { epoch, ballot, say } => {
                (NO_CALL, Noted::new(), Kind::Paxos(succession::say_to_wire(epoch, ballot, *say)))
            }
        };
        let noted = noted.into_iter().map(|generation| generation.0).collect();
        let identities = known
            .into_iter()
            .map(|(generation, nonce)| v1::PeerIdentity { generation: generation.0, nonce: nonce.0 })
            .collect();
        Self { operation: call.operation, attempt: call.attempt, kind: Some(kind), noted, identities }
    }
}

impl TryFrom<v1::PeerMessage> for Message {
    type Error = WireError;

    fn try_from(message: v1::PeerMessage) -> Result<Self, WireError> {
        let v1::PeerMessage { operation, attempt, kind, noted, identities } = message;
        let call = Call { operation, attempt };
        let noted: Noted = noted.into_iter().map(Generation).collect();
        Ok(match kind.ok_or(WireError::Missing("kind"))? {
            Kind::Write(write) => Self::Write(write_from_wire(call, write)?),
            Kind::WriteAnswer(answer) => {
                Self::WriteAnswer { call, outcome: write_answer_from_wire(answer)?, noted }
            }
            Kind::Mint(mint) => Self::Mint(mint_from_wire(call, mint)?),
            Kind::MintAnswer(answer) => {
                Self::MintAnswer { call, outcome: mint_answer_from_wire(answer)?, noted }
            }
            Kind::Read(v1::ReadMessage { key, digest }) => Self::Read {
                call,
                key: RecordKey::from_encoded(key)?,
                want: if digest { Want::Digest } else { Want::Full },
            },
            Kind::ReadAnswer(answer) => {
                Self::ReadAnswer { call, outcome: read_answer_from_wire(answer)?, noted }
            }
            Kind::Scan(scan) => {
                let (range, held) = scan::scan_from_wire(scan)?;
                Self::Scan { call, range, held }
            }
            Kind::Salvage(scan) => {
                let (range, _) = scan::scan_from_wire(scan)?;
                Self::Salvage { call, range }
            }
            Kind::ScanAnswer(answer) => {
                Self::ScanAnswer { call, outcome: scan::answer_from_wire(answer)?, noted }
            }
            Kind::Hint(v1::HintMessage { target, key }) => {
                Self::Hint { target: node("target", &target)?, key: RecordKey::from_encoded(key)? }
            }
            Kind::InitAccepted(v1::InitAcceptedMessage { digest, reply_wanted, decided }) => {
                Self::InitAccepted { digest, reply_wanted, decided }
            }
            Kind::Layout(layout) => {
                let identities = identities
                    .into_iter()
                    .map(|v1::PeerIdentity { generation, nonce }| (Generation(generation), Nonce(nonce)))
                    .collect();
                Self::Layout { layout: Box::new(succession::layout_from_wire(layout)?), identities }
            }
            Kind::Standing(standing) => Self::Standing(succession::standing_from_wire(standing)?),
            Kind::Paxos(paxos) => succession::say_from_wire(paxos)?,
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

pub(crate) fn record_to_wire(Record { stamp, body }: Record) -> v1::PeerRecord {
    let (kind, value) = match body {
        Body::Value(value) => (0, Some(value)),
        Body::Tombstone => (0, None),
        Body::Expiring { .. } | Body::Expired | Body::Siblings(_) => {
            (u32::from(body.kind()), Some(body.payload()))
        }
    };
    v1::PeerRecord { stamp: stamp_bytes(stamp), value, kind }
}

pub(crate) fn record_from_wire(record: v1::PeerRecord) -> Result<Record, WireError> {
    let v1::PeerRecord { stamp: of, value, kind } = record;
    let body = match (kind, value) {
        (0, Some(value)) => Body::Value(value),
        (0, None) => Body::Tombstone,
        (kind, value) => {
            let kind = u8::try_from(kind).map_err(|_| WireError::RecordKind(kind))?;
            Body::from_payload(kind, value.unwrap_or_default())?
        }
    };
    if let Body::Value(value) | Body::Expiring { value, .. } = &body {
        check_value(value)?;
    }
    Ok(Record { stamp: stamp("stamp", &of)?, body })
}

fn mint_to_wire(mint: Mint) -> v1::MintMessage {
    let Mint { call: _, key, change, deadline_wall_ms } = mint;
    let Change { stamp, operation, context, value, expires_ms } = change;
    v1::MintMessage {
        context: context.to_token(&key),
        key: key.encoded().clone(),
        stamp: stamp_bytes(stamp),
        operation_id: uuid_bytes(&operation.0),
        value,
        expires_ms: expires_ms.unwrap_or_default(),
        deadline_wall_ms,
    }
}

fn mint_from_wire(call: Call, mint: v1::MintMessage) -> Result<Mint, WireError> {
    let v1::MintMessage { key, stamp: of, operation_id, context, value, expires_ms, deadline_wall_ms } = mint;
    let key = RecordKey::from_encoded(key)?;
    if let Some(value) = &value {
        check_value(value)?;
    }
    let change = Change {
        stamp: stamp("stamp", &of)?,
        operation: OperationId(sixteen("operation_id", &operation_id)?),
        context: Context::from_token(&key, &context)?,
        value,
        expires_ms: (expires_ms > 0).then_some(expires_ms),
    };
    Ok(Mint { call, key, change, deadline_wall_ms })
}

fn mint_answer_to_wire(outcome: MintOutcome) -> v1::MintAnswer {
    let outcome = match outcome {
        MintOutcome::Minted { record, dot } => MintKind::Minted(v1::Minted {
            record: Some(record_to_wire(record)),
            dot: dot.map(|Dot { actor, counter }| v1::PeerDot { actor: actor.0, counter }),
        }),
        MintOutcome::Refused(refusal) => MintKind::Refused(refusal_to_wire(refusal).into()),
    };
    v1::MintAnswer { outcome: Some(outcome) }
}

fn mint_answer_from_wire(answer: v1::MintAnswer) -> Result<MintOutcome, WireError> {
    Ok(match answer.outcome.ok_or(WireError::Missing("outcome"))? {
        MintKind::Minted(v1::Minted { record, dot }) => MintOutcome::Minted {
            record: record_from_wire(record.ok_or(WireError::Missing("record"))?)?,
            dot: dot.map(|v1::PeerDot { actor, counter }| Dot { actor: DotActor(actor), counter }),
        },
        MintKind::Refused(refusal) => MintOutcome::Refused(refusal_from_wire(refusal)?),
    })
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

pub(crate) fn refusal_to_wire(refusal: Refusal) -> v1::PeerOperationRefusal {
    match refusal {
        Refusal::DeadlinePassed => v1::PeerOperationRefusal::DeadlinePassed,
        Refusal::ClockSkew => v1::PeerOperationRefusal::ClockSkew,
        Refusal::InDoubt => v1::PeerOperationRefusal::InDoubt,
        Refusal::DiskFull => v1::PeerOperationRefusal::DiskFull,
        Refusal::Overloaded => v1::PeerOperationRefusal::Overloaded,
        Refusal::NotReplica => v1::PeerOperationRefusal::NotReplica,
        Refusal::NotInitialized => v1::PeerOperationRefusal::NotInitialized,
        Refusal::TooManySiblings => v1::PeerOperationRefusal::TooManySiblings,
        Refusal::StaleEpoch => v1::PeerOperationRefusal::StaleEpoch,
    }
}

pub(crate) fn refusal_from_wire(refusal: i32) -> Result<Refusal, WireError> {
    match v1::PeerOperationRefusal::try_from(refusal) {
        Ok(v1::PeerOperationRefusal::DeadlinePassed) => Ok(Refusal::DeadlinePassed),
        Ok(v1::PeerOperationRefusal::ClockSkew) => Ok(Refusal::ClockSkew),
        Ok(v1::PeerOperationRefusal::InDoubt) => Ok(Refusal::InDoubt),
        Ok(v1::PeerOperationRefusal::DiskFull) => Ok(Refusal::DiskFull),
        Ok(v1::PeerOperationRefusal::Overloaded) => Ok(Refusal::Overloaded),
        Ok(v1::PeerOperationRefusal::NotReplica) => Ok(Refusal::NotReplica),
        Ok(v1::PeerOperationRefusal::NotInitialized) => Ok(Refusal::NotInitialized),
        Ok(v1::PeerOperationRefusal::TooManySiblings) => Ok(Refusal::TooManySiblings),
        Ok(v1::PeerOperationRefusal::StaleEpoch) => Ok(Refusal::StaleEpoch),
        Ok(v1::PeerOperationRefusal::Unspecified) | Err(_) => {
            Err(WireError::UnknownValue { field: "refused", found: refusal })
        }
    }
}
