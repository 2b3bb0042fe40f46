//! The layouts that a node has taken up, on the wire and on disk.

use keystore_core::history::{Changes, Difference, Entry, History};
use keystore_core::id::Epoch;

use crate::error::WireError;
use crate::v1;
use crate::v1::LayoutDifferenceKind as Kind;

pub fn history_to_wire(history: &History) -> v1::LayoutHistory {
    v1::LayoutHistory { entries: history.entries().map(entry_to_wire).collect() }
}

pub fn history_from_wire(history: v1::LayoutHistory) -> Result<History, WireError> {
    history.entries.into_iter().map(entry_from_wire).collect()
}

fn entry_to_wire(entry: &Entry) -> v1::LayoutHistoryEntry {
    let Entry { incarnation, epoch, is_joint, taken_up_ms, changes, members, voters } = entry;
    let phase = if *is_joint { v1::LayoutPhase::Joint } else { v1::LayoutPhase::Stable };
    v1::LayoutHistoryEntry {
        incarnation: Some((*incarnation).into()),
        epoch: epoch.0,
        phase: phase.into(),
        taken_up_ms: *taken_up_ms,
        changes: changes.as_ref().map(changes_to_wire),
        members: *members,
        voters: *voters,
    }
}

fn entry_from_wire(entry: v1::LayoutHistoryEntry) -> Result<Entry, WireError> {
    let v1::LayoutHistoryEntry { incarnation, epoch, phase, taken_up_ms, changes, members, voters } = entry;
    let is_joint = match v1::LayoutPhase::try_from(phase) {
        Ok(v1::LayoutPhase::Stable) => false,
        Ok(v1::LayoutPhase::Joint) => true,
        Ok(v1::LayoutPhase::Unspecified) | Err(_) => {
            return Err(WireError::UnknownValue { field: "phase", found: phase });
        }
    };
    Ok(Entry {
        incarnation: incarnation.ok_or(WireError::Missing("incarnation"))?.into(),
        epoch: Epoch(epoch),
        is_joint,
        taken_up_ms,
        changes: changes.and_then(changes_from_wire),
        members,
        voters,
    })
}

fn changes_to_wire(changes: &Changes) -> v1::LayoutChanges {
    let Changes { differences, partitions_moved } = changes;
    let difference = |difference: &Difference| {
        let (kind, count) = match *difference {
            Difference::First => (Kind::First, 0),
            Difference::Recovered { salvaged } => (Kind::Recovered, salvaged),
            Difference::Begun => (Kind::Begun, 0),
            Difference::Finished => (Kind::Finished, 0),
            Difference::Aborted => (Kind::Aborted, 0),
            Difference::Admitted(count) => (Kind::Admitted, count),
            Difference::Altered(count) => (Kind::Altered, count),
            Difference::Lost(count) => (Kind::Lost, count),
            Difference::Dismissed(count) => (Kind::Dismissed, count),
            Difference::Voters => (Kind::Voters, 0),
            Difference::Keyspaces(count) => (Kind::Keyspaces, count),
        };
        v1::LayoutDifference { kind: kind.into(), count }
    };
    v1::LayoutChanges {
        differences: differences.iter().map(difference).collect(),
        partitions_moved: *partitions_moved,
    }
}

/// `None` for what only a later version knows.
fn changes_from_wire(changes: v1::LayoutChanges) -> Option<Changes> {
    let v1::LayoutChanges { differences, partitions_moved } = changes;
    let differences = differences.into_iter().map(difference_from_wire).collect::<Option<_>>()?;
    Some(Changes { differences, partitions_moved })
}

fn difference_from_wire(difference: v1::LayoutDifference) -> Option<Difference> {
    let v1::LayoutDifference { kind, count } = difference;
    Some(match Kind::try_from(kind) {
        Ok(Kind::First) => Difference::First,
        Ok(Kind::Recovered) => Difference::Recovered { salvaged: count },
        Ok(Kind::Begun) => Difference::Begun,
        Ok(Kind::Finished) => Difference::Finished,
        Ok(Kind::Aborted) => Difference::Aborted,
        Ok(Kind::Admitted) => Difference::Admitted(count),
        Ok(Kind::Altered) => Difference::Altered(count),
        Ok(Kind::Lost) => Difference::Lost(count),
        Ok(Kind::Dismissed) => Difference::Dismissed(count),
        Ok(Kind::Voters) => Difference::Voters,
        Ok(Kind::Keyspaces) => Difference::Keyspaces(count),
        Ok(Kind::Unspecified) | Err(_) => return None,
    })
}
