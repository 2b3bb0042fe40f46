//! What a replica says to whoever has asked it.

use super::Holding;
use crate::context::Context;
use crate::effect::NotCommitted;
use crate::id::NodeId;
use crate::message::{Call, Message, MintOutcome, Noted, ReadOutcome, Refusal, Want, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::Record;

/// Once the commit that it waits for has ended.
pub(super) fn answer_of(
    call: Call,
    holding: Holding,
    outcome: Result<Durability, NotCommitted>,
    noted: Noted,
) -> Message {
    let refused = Refusal::DiskFull;
    match (holding, outcome) {
        (Holding::Minted { record, dot }, Ok(_)) => {
            Message::MintAnswer { call, outcome: MintOutcome::Minted { record, dot }, noted }
        }
        (Holding::Minted { .. }, Err(_)) => {
            Message::MintAnswer { call, outcome: MintOutcome::Refused(refused), noted }
        }
        (Holding::Ours, Ok(durability)) => {
            let durability = match is_on(Mutant::WrittenIsCalledSynced) {
                true => Durability::Synced,
                false => durability,
            };
            Message::WriteAnswer { call, outcome: WriteOutcome::Held(durability), noted }
        }
        (Holding::Superseding(stamp), Ok(_)) => {
            Message::WriteAnswer { call, outcome: WriteOutcome::Superseded(stamp), noted }
        }
        (Holding::Ours | Holding::Superseding(_), Err(_)) => {
            Message::WriteAnswer { call, outcome: WriteOutcome::Refused(refused), noted }
        }
    }
}

pub(super) fn read_outcome(record: Option<Record>, want: Want, digest_bytes_min: usize) -> ReadOutcome {
    match (record, want) {
        (None, _) => ReadOutcome::Missing,
        (Some(record), Want::Digest) if record.value_len() > digest_bytes_min => {
            ReadOutcome::Digest(record.version())
        }
        (Some(record), Want::Digest | Want::Full) => ReadOutcome::Full(record),
    }
}

pub(super) fn refuse_read(to: NodeId, call: Call, key: &RecordKey, context: &mut Context<'_>) {
    let noted = context.noted(context.partition(key));
    context.send(to, Message::ReadAnswer { call, outcome: ReadOutcome::Refused(Refusal::InDoubt), noted });
}
