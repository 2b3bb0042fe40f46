//! Pages of records that move from one node to another, compressed: mostly they are text, and there are many of them.
//!
//! A frame is packed only if all that is in it are such pages: whatever else there is, somebody waits for it. A frame that
//! cannot be unpacked closes its link, as any malformed frame does; the checksum is that of the compressed form.

use bytes::Bytes;
use keystore_proto::error::WireError;
use keystore_proto::v1;
use keystore_proto::v1::peer_frame::Kind;
use keystore_proto::v1::scan_answer::Outcome;
use keystore_proto::v1::{PeerMessages, peer_message};
use prost::Message as _;
use tracing::debug;
use zstd::bulk::{Compressor, decompress};

use crate::grpc::FRAME_DECODED_BYTES_MAX;

/// The fastest of the usual levels: two cores serve clients meanwhile.
const LEVEL: i32 = 1;
/// Below this a frame is not worth it; above the other, it would keep a thread for too long.
const PLAIN_BYTES: std::ops::RangeInclusive<usize> = (4 << 10)..=(2 << 20);
/// After a frame that did not get smaller so many go as they are.
const PASSED_OVER: u32 = 15;

/// Of one link.
#[derive(Default)]
pub(super) struct Packer {
    /// Made when it is first needed.
    compressor: Option<Compressor<'static>>,
    passes_over: u32,
}

impl Packer {
    /// The frame as it is sent to somebody who can unpack.
    pub(super) fn pack(&mut self, frame: v1::PeerFrame) -> v1::PeerFrame {
        let v1::PeerFrame { header, kind } = frame;
        let kind = match kind {
            Some(Kind::Messages(messages)) if is_worth_it(&messages) => Some(self.packed(messages)),
            other => other,
        };
        v1::PeerFrame { header, kind }
    }

    /// What does not get smaller by an eighth stays as it is.
    fn packed(&mut self, messages: PeerMessages) -> Kind {
        if self.passes_over > 0 {
            self.passes_over -= 1;
            return Kind::Messages(messages);
        }
        let plain = messages.encode_to_vec();
        match self.compress(&plain) {
            Ok(zstd) if zstd.len() <= plain.len() / 8 * 7 => {
                let bytes = u32::try_from(plain.len()).unwrap_or(u32::MAX);
                return Kind::Packed(v1::PackedMessages { zstd: zstd.into(), bytes });
            }
            Ok(_) => {}
            Err(error) => debug!(%error, "records cannot be compressed, and go as they are"),
        }
        self.passes_over = PASSED_OVER;
        Kind::Messages(messages)
    }

    fn compress(&mut self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        if let Some(compressor) = &mut self.compressor {
            return compressor.compress(plain);
        }
        let mut compressor = Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        self.compressor.insert(compressor).compress(plain)
    }
}

fn is_worth_it(messages: &PeerMessages) -> bool {
    let moves = |message: &v1::PeerMessage| match &message.kind {
        Some(peer_message::Kind::ScanAnswer(answer)) => matches!(answer.outcome, Some(Outcome::Lacking(_))),
        Some(_) | None => false,
    };
    messages.messages.iter().all(moves) && PLAIN_BYTES.contains(&messages.encoded_len())
}

/// A frame as it was before it was packed, if it was.
pub fn unpack(frame: v1::PeerFrame) -> Result<v1::PeerFrame, WireError> {
    let v1::PeerFrame { header, kind: Some(Kind::Packed(packed)) } = frame else { return Ok(frame) };
    let bytes = packed.bytes as usize;
    if bytes > FRAME_DECODED_BYTES_MAX {
        return Err(WireError::Packed(format!("{bytes} bytes are more than a frame may have")));
    }
    let plain = decompress(&packed.zstd, bytes).map_err(|error| WireError::Packed(error.to_string()))?;
    if plain.len() != bytes {
        return Err(WireError::Packed(format!("there are {} bytes, and not {bytes}", plain.len())));
    }
    let messages =
        PeerMessages::decode(Bytes::from(plain)).map_err(|error| WireError::Packed(error.to_string()))?;
    Ok(v1::PeerFrame { header, kind: Some(Kind::Messages(messages)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(value: impl Fn(u32) -> Bytes) -> v1::PeerFrame {
        let entry = |n: u32| v1::PeerEntry {
            key: format!("key {n}").into(),
            record: Some(v1::PeerRecord { value: Some(value(n)), ..v1::PeerRecord::default() }),
        };
        let lacking = v1::LackingMessage { entries: (0..128).map(entry).collect(), until: Bytes::new() };
        let answer = v1::ScanAnswer { outcome: Some(Outcome::Lacking(lacking)) };
        let message = v1::PeerMessage {
            kind: Some(peer_message::Kind::ScanAnswer(answer)),
            ..v1::PeerMessage::default()
        };
        let messages = PeerMessages { messages: vec![message] };
        v1::PeerFrame { header: None, kind: Some(Kind::Messages(messages)) }
    }

    fn text(n: u32) -> Bytes {
        format!(r#"{{"customer": {n}, "address": "{n} High Street", "orders": [{n}, {}]}}"#, n * 7).into()
    }

    fn noise(n: u32) -> Bytes {
        let mut state = u64::from(n) + 1;
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..256).map(byte).collect()
    }

    fn packed(frame: &v1::PeerFrame) -> v1::PackedMessages {
        match &frame.kind {
            Some(Kind::Packed(packed)) => packed.clone(),
            other => panic!("not packed: {other:?}"),
        }
    }

    #[test]
    fn records_that_move_are_packed_and_come_out_as_they_were() {
        let (plain, mut packer) = (page(text), Packer::default());
        for _ in 0..2 {
            let sent = packer.pack(plain.clone());
            assert!(sent.encoded_len() * 2 < plain.encoded_len(), "{} bytes", sent.encoded_len());
            assert_eq!(unpack(sent), Ok(plain.clone()));
        }
    }

    #[test]
    fn what_would_not_get_smaller_and_what_is_no_page_goes_as_it_is() {
        let small = {
            let mut frame = page(text);
            let Some(Kind::Messages(messages)) = &mut frame.kind else { panic!("no messages") };
            let Some(peer_message::Kind::ScanAnswer(answer)) = &mut messages.messages[0].kind else {
                panic!("no page")
            };
            let Some(Outcome::Lacking(lacking)) = &mut answer.outcome else { panic!("no records") };
            lacking.entries.truncate(3);
            frame
        };
        let write = v1::WriteMessage {
            record: Some(v1::PeerRecord {
                value: Some(vec![7; 1 << 20].into()),
                ..v1::PeerRecord::default()
            }),
            ..v1::WriteMessage::default()
        };
        let message =
            v1::PeerMessage { kind: Some(peer_message::Kind::Write(write)), ..v1::PeerMessage::default() };
        let messages = PeerMessages { messages: vec![message] };
        let write = v1::PeerFrame { header: None, kind: Some(Kind::Messages(messages)) };
        let waited_for = {
            let mut frame = page(text);
            let Some(Kind::Messages(messages)) = &mut frame.kind else { panic!("no messages") };
            messages.messages.push(v1::PeerMessage::default());
            frame
        };
        for frame in [page(noise), small, write, waited_for] {
            assert_eq!(Packer::default().pack(frame.clone()), frame);
            assert_eq!(unpack(frame.clone()), Ok(frame));
        }
        let mut packer = Packer::default();
        packer.pack(page(noise));
        let passed_over = (0..).take_while(|_| packer.pack(page(text)) == page(text)).count();
        assert_eq!(passed_over, PASSED_OVER as usize);
    }

    /// As the release before sent it.
    #[test]
    fn what_was_packed_before_can_be_unpacked() {
        let sent = v1::PeerFrame::decode(&include_bytes!("../../tests/data/peer-packed-v1.bin")[..]).unwrap();
        assert!(!packed(&sent).zstd.is_empty());
        assert_eq!(unpack(sent), Ok(page(text)));
    }

    #[test]
    fn what_was_altered_on_its_way_is_refused_or_unharmed() {
        let sent = Packer::default().pack(page(text));
        let right = packed(&sent);
        let unpacked = |zstd: Vec<u8>, bytes: u32| {
            let packed = v1::PackedMessages { zstd: zstd.into(), bytes };
            unpack(v1::PeerFrame { header: None, kind: Some(Kind::Packed(packed)) })
        };
        let is_refused = |result| matches!(result, Err(WireError::Packed(_)));
        let mut refused = 0;
        for position in 0..right.zstd.len() {
            let mut zstd = right.zstd.to_vec();
            zstd[position] ^= 0x40;
            match unpacked(zstd, right.bytes) {
                // A bit that nobody reads.
                Ok(frame) => assert!(frame == page(text), "byte {position}"),
                result => refused += usize::from(is_refused(result)),
            }
        }
        assert!(refused + 4 > right.zstd.len(), "{refused} of {}", right.zstd.len());
        for bytes in [0, right.bytes - 1, right.bytes + 1, u32::MAX] {
            assert!(is_refused(unpacked(right.zstd.to_vec(), bytes)), "{bytes} bytes");
        }
        assert!(is_refused(unpacked(right.zstd[..right.zstd.len() - 1].to_vec(), right.bytes)));
        assert!(is_refused(unpacked(Vec::new(), right.bytes)));
    }
}
