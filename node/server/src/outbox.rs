//! What the core thread has for the other tasks after a batch of events: answers, verdicts on links, frames.
//!
//! Messages to one peer are gathered into as few frames as their size allows, and everything crosses to the other
//! thread as one value, so that many requests cost one wake-up.

use std::collections::BTreeMap;

use bytes::Bytes;
use keystore_core::effect::LinkId;
use keystore_core::held::Digests;
use keystore_core::layout::Layout;
use keystore_core::message::{Header, Hello, Message, Mint, MintOutcome, ReadOutcome, Refusal, ScanOutcome};
use keystore_core::partition::RecordKey;
use keystore_core::paxos::{Say, Vote};
use keystore_core::peers::LinkRefusal;
use keystore_core::record::Record;
use keystore_proto::peer::{Content, Frame};
use tokio::sync::oneshot;

use crate::handle::Told;

/// What is counted for a message beside its key and value: ids, stamp, tags.
const MESSAGE_BYTES: usize = 64;
/// What stands for a record that is held already.
const DIGEST_BYTES: usize = 16;

/// In the order in which it has to be delivered: verdicts, then frames, then closings.
#[derive(Debug, Default)]
pub struct Outbox {
    pub answers: Vec<(oneshot::Sender<Told>, Told)>,
    pub verdicts: Vec<(LinkId, Verdict)>,
    pub frames: Vec<OutgoingFrame>,
    pub closings: Vec<LinkId>,
    open: BTreeMap<LinkId, OutgoingFrame>,
}

#[derive(Debug)]
pub enum Verdict {
    Accepted(Hello),
    Refused(LinkRefusal),
}

#[derive(Debug)]
pub struct OutgoingFrame {
    pub link: LinkId,
    pub frame: Frame,
    /// About how large it is on the wire.
    pub bytes: usize,
}

impl OutgoingFrame {
    /// The same with a refusal in the place of each record that a reader has asked for: what remains is small, and
    /// a replica may always refuse a read.
    pub fn without_records(self) -> Self {
        let Self { link, frame: Frame { header, content }, .. } = self;
        let content = match content {
            Content::Messages(messages) => {
                Content::Messages(messages.into_iter().map(without_record).collect())
            }
            other @ (Content::Hello { .. } | Content::Refusal(_)) => other,
        };
        let bytes = match &content {
            Content::Messages(messages) => messages.iter().map(message_bytes).sum(),
            Content::Hello { .. } | Content::Refusal(_) => 0,
        };
        Self { link, frame: Frame { header, content }, bytes }
    }
}

fn without_record(message: Message) -> Message {
    match message {
        Message::ReadAnswer { call, outcome: ReadOutcome::Full(_), noted } => {
            Message::ReadAnswer { call, outcome: ReadOutcome::Refused(Refusal::Overloaded), noted }
        }
        Message::ScanAnswer { call, outcome: ScanOutcome::Page(_) | ScanOutcome::Lacking(_), noted } => {
            Message::ScanAnswer { call, outcome: ScanOutcome::Refused(Refusal::Overloaded), noted }
        }
        other => other,
    }
}

impl Outbox {
    pub fn send(&mut self, link: LinkId, header: Header, message: Message, frame_bytes_max: usize) {
        let bytes = message_bytes(&message);
        if let Some(open) = self.open.get_mut(&link)
            && open.frame.header == header
            && open.bytes < frame_bytes_max
            && let Content::Messages(messages) = &mut open.frame.content
        {
            open.bytes += bytes;
            messages.push(message);
            return;
        }
        let frame =
            OutgoingFrame { link, frame: Frame { header, content: Content::Messages(vec![message]) }, bytes };
        self.frames.extend(self.open.insert(link, frame));
    }

    /// Everything so far, complete; `None` if there is nothing.
    pub fn take(&mut self) -> Option<Self> {
        self.frames.extend(std::mem::take(&mut self.open).into_values());
        let is_empty = self.answers.is_empty()
            && self.verdicts.is_empty()
            && self.frames.is_empty()
            && self.closings.is_empty();
        (!is_empty).then(|| std::mem::take(self))
    }
}

fn message_bytes(message: &Message) -> usize {
    let of = |key: &RecordKey, record: &Record| key.encoded().len() + record.value_len();
    let variable = match message {
        Message::Write(write) => of(&write.key, &write.record),
        Message::Mint(Mint { key, change, .. }) => {
            let value = change.value.as_ref().map_or(0, Bytes::len);
            key.encoded().len() + value + change.context.encoded_len()
        }
        Message::MintAnswer { outcome: MintOutcome::Minted { record, .. }, .. }
        | Message::ReadAnswer { outcome: ReadOutcome::Full(record), .. } => record.value_len(),
        Message::ScanAnswer { outcome: ScanOutcome::Page(page), .. } => {
            page.entries.iter().map(|(key, record)| MESSAGE_BYTES + of(key, record)).sum()
        }
        Message::ScanAnswer { outcome: ScanOutcome::Lacking(lacking), .. } => {
            lacking.entries.iter().map(|(key, record)| MESSAGE_BYTES + of(key, record)).sum()
        }
        Message::Read { key, .. } | Message::Hint { key, .. } => key.encoded().len(),
        Message::Scan { range, held, .. } => {
            let digests = match held.as_ref().map(|held| &held.digests) {
                Some(Digests::Each(each)) => DIGEST_BYTES * each.len(),
                Some(Digests::All(_)) | None => 0,
            };
            range.prefix.len() + range.after.as_ref().map_or(0, |key| key.encoded().len()) + digests
        }
        Message::Salvage { range, .. } => {
            range.prefix.len() + range.after.as_ref().map_or(0, |key| key.encoded().len())
        }
        Message::ReadAnswer { .. }
        | Message::WriteAnswer { .. }
        | Message::MintAnswer { .. }
        | Message::ScanAnswer { .. }
        | Message::InitAccepted { .. } => 0,
        Message::Layout { layout, .. } => layout_bytes(layout),
        Message::Standing(standing) => 4 * standing.whole.len(),
        Message::Paxos { say, .. } => match &**say {
            Say::Promise { accepted: Some(Vote { layout, .. }) } | Say::Accept { layout, .. } => {
                layout_bytes(layout)
            }
            _ => 0,
        },
    };
    MESSAGE_BYTES + variable
}

fn layout_bytes(layout: &Layout) -> usize {
    let replicas: usize =
        layout.rings().map(|ring| ring.iter().map(|(_, replicas)| replicas.len()).sum::<usize>()).sum();
    6 * replicas + MESSAGE_BYTES * layout.members.len() + 18 * layout.departed.len()
}

#[cfg(test)]
mod tests {
    use keystore_core::id::{Actor, ClusterId, Epoch, Generation, Incarnation, NodeId};
    use keystore_core::message::{Call, Page};
    use keystore_core::record::Body;
    use keystore_core::stamp::Stamp;

    use super::*;

    const HEADER: Header = Header {
        cluster: ClusterId([1; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        epoch: Epoch(1),
        from: NodeId([3; 16]),
        to: NodeId([4; 16]),
        generation: Generation(5),
    };

    #[test]
    fn a_frame_without_records_refuses_the_reads_and_keeps_everything_else() {
        let call = Call { operation: 1, attempt: 0 };
        let stamp = Stamp::new(1, 0, Actor(1));
        let record = Record { stamp, body: Body::Value(vec![7; 1000].into()) };
        let read = |outcome| Message::ReadAnswer { call, outcome, noted: Vec::new() };
        let scan = |outcome| Message::ScanAnswer { call, outcome, noted: Vec::new() };
        let frame = |first, second| {
            let messages = vec![first, read(ReadOutcome::Missing), second, message(9)];
            Frame { header: HEADER, content: Content::Messages(messages) }
        };
        let full = OutgoingFrame {
            link: LinkId(1),
            frame: frame(read(ReadOutcome::Full(record)), scan(ScanOutcome::Page(Page::default()))),
            bytes: 1000 + 4 * MESSAGE_BYTES,
        };
        let refused = Refusal::Overloaded;
        let small = full.without_records();
        assert_eq!(
            small.frame,
            frame(read(ReadOutcome::Refused(refused)), scan(ScanOutcome::Refused(refused)))
        );
        assert_eq!(small.bytes, 4 * MESSAGE_BYTES);
    }

    fn message(digest: u64) -> Message {
        Message::InitAccepted { digest, reply_wanted: false, decided: false }
    }

    #[test]
    fn messages_of_one_link_share_frames_in_order() {
        let mut outbox = Outbox::default();
        for digest in 0..5 {
            outbox.send(LinkId(digest % 2), HEADER, message(digest), 2 * MESSAGE_BYTES);
        }
        let frames: Vec<_> = outbox
            .take()
            .unwrap()
            .frames
            .into_iter()
            .map(|outgoing| (outgoing.link, outgoing.frame.content))
            .collect();
        let content = |digests: &[u64]| Content::Messages(digests.iter().copied().map(message).collect());
        assert_eq!(
            frames,
            [(LinkId(0), content(&[0, 2])), (LinkId(0), content(&[4])), (LinkId(1), content(&[1, 3])),]
        );
        assert!(outbox.take().is_none());
    }
}
