//! What a replica is asked to apply: a record as it is, or a write that is to become a sibling.

use super::committing::ANSWER_BYTES;
use crate::causal::Change;
use crate::context::Context;
use crate::id::NodeId;
use crate::message::{Message, Mint, MintOutcome, Origin, Refusal, Write, WriteOutcome};
use crate::partition::RecordKey;
use crate::record::Body;
use crate::stamp::Stamp;

/// What a replica is asked to apply.
#[derive(Debug)]
pub(super) enum Incoming {
    Write(Write),
    Mint(Mint),
}

impl Incoming {
    pub(super) fn key(&self) -> &RecordKey {
        match self {
            Self::Write(Write { key, .. }) | Self::Mint(Mint { key, .. }) => key,
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        match self {
            Self::Write(write) => write.record.stamp,
            Self::Mint(mint) => mint.change.stamp,
        }
    }

    /// `None` for a repair, which has no deadline.
    pub(super) fn client_deadline_ms(&self) -> Option<u64> {
        match self {
            Self::Write(Write { origin: Origin::Client { deadline_wall_ms }, .. })
            | Self::Mint(Mint { deadline_wall_ms, .. }) => Some(*deadline_wall_ms),
            Self::Write(Write { origin: Origin::Repair, .. }) => None,
        }
    }

    /// True of what leaves nothing of what is below its stamp; siblings come together with what is there.
    pub(super) fn replaces(&self) -> bool {
        match self {
            Self::Write(write) => !matches!(write.record.body, Body::Siblings(_)),
            Self::Mint(_) => false,
        }
    }

    pub(super) fn takes_space(&self) -> bool {
        match self {
            Self::Write(write) => !matches!(write.record.body, Body::Tombstone | Body::Expired),
            Self::Mint(mint) => mint.change.value.is_some(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let content = match self {
            Self::Write(write) => write.record.value_len(),
            Self::Mint(Mint { change: Change { value, .. }, .. }) => {
                value.as_ref().map_or(0, |value| value.len())
            }
        };
        ANSWER_BYTES + self.key().encoded().len() + content
    }

    pub(super) fn refuse(self, to: NodeId, refusal: Refusal, context: &mut Context<'_>) {
        let noted = context.noted(context.partition(self.key()));
        context.send(
            to,
            match self {
                Self::Write(Write { call, .. }) => {
                    Message::WriteAnswer { call, outcome: WriteOutcome::Refused(refusal), noted }
                }
                Self::Mint(Mint { call, .. }) => {
                    Message::MintAnswer { call, outcome: MintOutcome::Refused(refusal), noted }
                }
            },
        );
    }
}
