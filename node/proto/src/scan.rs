//! Pages of records, and what need not be sent of them: to the wire and back.

use bytes::{BufMut, Bytes, BytesMut};
use keystore_core::held::{Digest, Digests, Held, Lacking};
use keystore_core::message::{Page, ScanOutcome, ScanRange};
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::record::Record;

use crate::error::WireError;
use crate::field::sixteen;
use crate::message::{record_from_wire, record_to_wire, refusal_from_wire, refusal_to_wire};
use crate::v1;
use crate::v1::held_message::Digests as DigestsKind;
use crate::v1::scan_answer::Outcome as ScanKind;

/// The bytes of a digest.
const DIGEST_BYTES: usize = 16;

pub(crate) fn scan_to_wire(range: ScanRange, held: Option<Held>) -> v1::ScanMessage {
    let ScanRange { partition, prefix, after, limit } = range;
    let (after, held) = (key_to_wire(after), held.map(held_to_wire));
    v1::ScanMessage { partition: partition.0.into(), prefix, after, limit, held }
}

pub(crate) fn scan_from_wire(scan: v1::ScanMessage) -> Result<(ScanRange, Option<Held>), WireError> {
    let v1::ScanMessage { partition, prefix, after, limit, held } = scan;
    let partition = u16::try_from(partition).map_err(|_| WireError::Partition(partition))?;
    let after = key_from_wire(after)?;
    let range = ScanRange { partition: Partition(partition), prefix, after, limit };
    Ok((range, held.map(held_from_wire).transpose()?))
}

pub(crate) fn answer_to_wire(outcome: ScanOutcome) -> v1::ScanAnswer {
    let outcome = match outcome {
        ScanOutcome::Page(page) => {
            let is_cut = page.is_cut();
            ScanKind::Page(v1::PeerPage { entries: entries_to_wire(page.entries), is_cut })
        }
        ScanOutcome::Lacking(Lacking { entries, until }) => ScanKind::Lacking(v1::LackingMessage {
            entries: entries_to_wire(entries),
            until: key_to_wire(until),
        }),
        ScanOutcome::Differs => ScanKind::Differs(true),
        ScanOutcome::Refused(refusal) => ScanKind::Refused(refusal_to_wire(refusal).into()),
    };
    v1::ScanAnswer { outcome: Some(outcome) }
}

pub(crate) fn answer_from_wire(answer: v1::ScanAnswer) -> Result<ScanOutcome, WireError> {
    Ok(match answer.outcome.ok_or(WireError::Missing("outcome"))? {
        ScanKind::Page(v1::PeerPage { entries, is_cut }) => {
            if is_cut && entries.is_empty() {
                return Err(WireError::Missing("entries"));
            }
            let entries = entries_from_wire(entries)?;
            ScanOutcome::Page(if is_cut { Page::cut(entries) } else { Page::whole(entries) })
        }
        ScanKind::Lacking(v1::LackingMessage { entries, until }) => ScanOutcome::Lacking(Lacking {
            entries: entries_from_wire(entries)?,
            until: key_from_wire(until)?,
        }),
        ScanKind::Differs(true) => ScanOutcome::Differs,
        ScanKind::Differs(false) => return Err(WireError::Missing("differs")),
        ScanKind::Refused(refusal) => ScanOutcome::Refused(refusal_from_wire(refusal)?),
    })
}

fn held_to_wire(Held { until, digests }: Held) -> v1::HeldMessage {
    let digests = match digests {
        Digests::All(digest) => DigestsKind::All(digests_to_wire(&[digest])),
        Digests::Each(each) => DigestsKind::Each(digests_to_wire(&each)),
    };
    v1::HeldMessage { until: key_to_wire(until), digests: Some(digests) }
}

fn held_from_wire(held: v1::HeldMessage) -> Result<Held, WireError> {
    let v1::HeldMessage { until, digests } = held;
    let digests = match digests.ok_or(WireError::Missing("digests"))? {
        DigestsKind::All(digest) => Digests::All(digest_from_wire("all", &digest)?),
        DigestsKind::Each(each) => {
            let each = each.chunks(DIGEST_BYTES).map(|digest| digest_from_wire("each", digest));
            Digests::Each(each.collect::<Result<_, _>>()?)
        }
    };
    Ok(Held { until: key_from_wire(until)?, digests })
}

fn digests_to_wire(digests: &[Digest]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(DIGEST_BYTES * digests.len());
    for digest in digests {
        bytes.put_u128(digest.0);
    }
    bytes.freeze()
}

fn digest_from_wire(field: &'static str, bytes: &[u8]) -> Result<Digest, WireError> {
    sixteen(field, bytes).map(u128::from_be_bytes).map(Digest)
}

fn key_to_wire(key: Option<RecordKey>) -> Bytes {
    key.map(|key| key.encoded().clone()).unwrap_or_default()
}

fn key_from_wire(bytes: Bytes) -> Result<Option<RecordKey>, WireError> {
    (!bytes.is_empty()).then(|| RecordKey::from_encoded(bytes)).transpose().map_err(WireError::from)
}

fn entries_to_wire(entries: Vec<(RecordKey, Record)>) -> Vec<v1::PeerEntry> {
    let entry = |(key, record): (RecordKey, Record)| v1::PeerEntry {
        key: key.encoded().clone(),
        record: Some(record_to_wire(record)),
    };
    entries.into_iter().map(entry).collect()
}

fn entries_from_wire(entries: Vec<v1::PeerEntry>) -> Result<Vec<(RecordKey, Record)>, WireError> {
    let entry = |v1::PeerEntry { key, record }| {
        let record = record_from_wire(record.ok_or(WireError::Missing("record"))?)?;
        Ok((RecordKey::from_encoded(key)?, record))
    };
    entries.into_iter().map(entry).collect()
}
