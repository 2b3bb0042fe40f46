//! The decoders of what lies on disk, for those who feed them with what no disk should hold.
//!
//! Each puts the checksum right first: damage that a checksum notices never comes further. Nothing here is used by a
//! node. Results are told as the shape of what was found.

use std::path::Path;

use bytes::Bytes;

use super::found::{
    decode_generation, decode_history, decode_identity, decode_membership, decode_merges, decode_number,
    decode_peers, decode_position, decode_votes, encode_generation, encode_history, encode_identity,
    encode_membership, encode_merges, encode_number, encode_peers, encode_position, encode_votes,
};
use super::state::{Kind, StateError};
use super::{log, snapshot, state};

/// A batch of the commit log, and the entries in it.
pub fn log_batch(input: &[u8]) -> String {
    match log::decode_repaired(input) {
        None => "no batch".to_owned(),
        Some(None) => "a batch without its entries".to_owned(),
        Some(Some(entries)) => format!("{} entries", entries.len().min(3)),
    }
}

/// The entries in a batch, one after the other.
pub fn log_entries(input: &[u8]) -> String {
    let mut left = Bytes::copy_from_slice(input);
    let mut kinds = String::new();
    while let Some(entry) = log::decode_entry(&mut left) {
        let mut again = Vec::new();
        log::encode_entry(&entry, &mut again);
        assert_eq!(again.len(), log::entry_len(&entry), "an entry is as long as it says");
        assert_eq!(log::decode_entry(&mut again.into()).as_ref(), Some(&entry), "an entry reads back");
        if kinds.len() < 4 {
            kinds.push_str(match entry {
                keystore_core::effect::Entry::Record { .. } => "r",
                keystore_core::effect::Entry::Replace { .. } => "p",
                keystore_core::effect::Entry::Hint(_) => "h",
                keystore_core::effect::Entry::HintDone { .. } => "d",
            });
        }
    }
    format!("{kinds} {}", left.is_empty())
}

/// A small state; the first byte says of which kind.
pub fn state(input: &[u8]) -> String {
    let Some((kind, payload)) = input.split_first() else { return "empty".to_owned() };
    let Some(kind) = Kind::ALL.get(usize::from(*kind) % Kind::ALL.len()).copied() else {
        return String::new();
    };
    let file = state::encode(kind, payload);
    let read = state::decode(kind, &file);
    assert_eq!(read.ok(), Some(payload), "a state that was written is whole");
    // Without its frame, too: whatever lies in the file.
    let _ = state::decode(kind, payload);
    match reread(kind, payload) {
        Ok(()) => format!("{kind:?}"),
        Err(error) => format!("{kind:?} {error}"),
    }
}

/// What a payload means, written and read again, is the same.
fn reread(kind: Kind, payload: &[u8]) -> Result<(), StateError> {
    match kind {
        Kind::Identity => {
            let identity = decode_identity(payload)?;
            assert_eq!(decode_identity(&encode_identity(&identity))?, identity);
        }
        Kind::Generation => {
            let (generation, trusted_since, lineage) = decode_generation(payload)?;
            let again = decode_generation(&encode_generation(generation, trusted_since, &lineage))?;
            assert_eq!(again, (generation, trusted_since, lineage));
        }
        Kind::StampCeiling => {
            let number = decode_number(payload)?;
            assert_eq!(decode_number(&encode_number(number))?, number);
        }
        Kind::Layout => {
            let membership = decode_membership(payload)?;
            let of = membership.as_ref().map(|(layout, decided)| (layout, *decided));
            assert_eq!(decode_membership(&encode_membership(of))?, membership);
        }
        Kind::Peers => {
            let peers = decode_peers(payload)?;
            assert_eq!(decode_peers(&encode_peers(&peers))?, peers);
        }
        Kind::Checkpoint => {
            let position = decode_position(payload)?;
            assert_eq!(decode_position(&encode_position(position))?, position);
        }
        Kind::Engine => {
            super::found::decode_engine(payload)?;
        }
        Kind::SetAside => {}
        Kind::Votes => {
            let votes = decode_votes(payload)?;
            assert_eq!(decode_votes(&encode_votes(&votes))?, votes);
        }
        Kind::Merges => {
            let merges = decode_merges(payload)?;
            assert_eq!(decode_merges(&encode_merges(&merges))?, merges);
        }
        Kind::History => {
            let history = decode_history(payload)?;
            assert_eq!(decode_history(&encode_history(&history))?, history);
        }
    }
    Ok(())
}

/// A snapshot with this body in its one block.
pub fn snapshot(directory: &Path, input: &[u8]) -> String {
    let mut items = 0;
    match snapshot::read_repaired(directory, input, &mut |_, _| items += 1) {
        Ok(_) => format!("{} items", items.min(3)),
        Err(_) => "damaged".to_owned(),
    }
}
