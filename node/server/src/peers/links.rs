//! The links that are open, by id: where the core's verdicts and frames go.
//!
//! What waits for one peer is bounded in bytes and frames. Records that a peer wants to read are refused from half of
//! that on. A link whose queue is full all the same is given up: its peer does not read, and the core has to know.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use keystore_core::effect::LinkId;
use keystore_core::message::{Header, Hello};
use keystore_core::peers::LinkRefusal;
use keystore_proto::peer::{Content, Frame};
use keystore_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::packing::Packer;
use crate::outbox::{OutgoingFrame, Verdict};

/// How many frames may wait for one peer; their bytes have a limit of their own.
const QUEUED_FRAMES_MAX: usize = 4_096;

/// All open links of this node.
#[derive(Debug)]
pub struct Links {
    open: Mutex<BTreeMap<LinkId, Open>>,
    next: AtomicU64,
    queue_bytes_max: usize,
}

#[derive(Debug)]
struct Open {
    queue: mpsc::Sender<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    /// What the other side said first; taken with the verdict.
    offered: Option<Offered>,
    cancelled: CancellationToken,
}

#[derive(Debug)]
struct Offered {
    hello: Hello,
    /// True on the accepting side: the dialler has said hello before it knew of the link.
    answers_hello: bool,
    decided: oneshot::Sender<Option<Hello>>,
}

#[derive(Debug)]
struct Queued {
    frame: v1::PeerFrame,
    bytes: usize,
}

/// The frames for one peer, as the body of its stream.
pub(super) struct OutgoingFrames {
    queue: mpsc::Receiver<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    is_packed: Arc<AtomicBool>,
    packer: Packer,
}

impl Stream for OutgoingFrames {
    type Item = v1::PeerFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<v1::PeerFrame>> {
        let polled = self.queue.poll_recv(context);
        polled.map(|queued| {
            queued.map(|Queued { frame, bytes }| {
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                if self.is_packed.load(Ordering::Relaxed) { self.packer.pack(frame) } else { frame }
            })
        })
    }
}

/// The sending half of a link that nobody knows yet.
#[derive(Debug)]
pub(super) struct NewLink {
    queue: mpsc::Sender<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    /// The other side has said that it can unpack.
    is_packed: Arc<AtomicBool>,
}

/// A stream of frames and its sending half.
pub(super) fn outgoing() -> (NewLink, OutgoingFrames) {
    let (queue, receiver) = mpsc::channel(QUEUED_FRAMES_MAX);
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    let is_packed = Arc::new(AtomicBool::new(false));
    let link = NewLink { queue, queued_bytes: Arc::clone(&queued_bytes), is_packed: Arc::clone(&is_packed) };
    let frames = OutgoingFrames { queue: receiver, queued_bytes, is_packed, packer: Packer::default() };
    (link, frames)
}

impl NewLink {
    /// The other side can unpack what is packed.
    pub(super) fn pack(&self) {
        self.is_packed.store(true, Ordering::Relaxed);
    }

    /// For the dialler, whose hello comes before any verdict.
    pub(super) fn say_hello(&self, hello: &Hello) {
        // The queue is empty and never refuses its first frame.
        let _ = self.queue.try_send(hello_frame(hello));
    }
}

impl Links {
    pub fn new(queue_bytes_max: usize) -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(1), queue_bytes_max }
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Names a link and gets it ready for the verdict on `hello`: our own hello, said by then, if it is accepted.
    pub(super) fn register(
        &self,
        link: NewLink,
        hello: Hello,
        answers_hello: bool,
        cancelled: CancellationToken,
    ) -> (LinkId, oneshot::Receiver<Option<Hello>>) {
        let id = LinkId(self.next.fetch_add(1, Ordering::Relaxed));
        let (decided, verdict) = oneshot::channel();
        let NewLink { queue, queued_bytes, is_packed: _ } = link;
        let open =
            Open { queue, queued_bytes, offered: Some(Offered { hello, answers_hello, decided }), cancelled };
        self.lock().insert(id, open);
        (id, verdict)
    }

    /// What is still queued is sent; nothing more is.
    pub(super) fn remove(&self, link: LinkId) {
        self.lock().remove(&link);
    }

    pub fn decide(&self, link: LinkId, verdict: Verdict) {
        let mut open = self.lock();
        let Some(Open { queue, offered, .. }) = open.get_mut(&link) else {
            return;
        };
        let Some(offered) = offered.take() else { return };
        let accepted = match verdict {
            Verdict::Accepted(hello) => {
                let is_said = !offered.answers_hello || queue.try_send(hello_frame(&hello)).is_ok();
                is_said.then_some(hello)
            }
            Verdict::Refused(refusal) => {
                // If it cannot be queued, the other side sees the link close without a word.
                let _ = queue.try_send(refusal_frame(&offered.hello.header, refusal));
                None
            }
        };
        // The link's task may be gone already.
        let _ = offered.decided.send(accepted);
    }

    pub fn send(&self, outgoing: OutgoingFrame) {
        let link = outgoing.link;
        let mut all = self.lock();
        let Some(open) = all.get(&link) else { return };
        let is_half_full = open.queued_bytes.load(Ordering::Relaxed) >= self.queue_bytes_max / 2;
        let outgoing = if is_half_full { outgoing.without_records() } else { outgoing };
        let OutgoingFrame { frame, bytes, .. } = outgoing;
        let queued_bytes = open.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let queued = Queued { frame: frame.into(), bytes };
        if queued_bytes > self.queue_bytes_max || open.queue.try_send(queued).is_err() {
            warn!(link = link.0, queued_bytes, "too much waits for a member, closing the link to it");
            open.cancelled.cancel();
            all.remove(&link);
        }
    }

    pub fn close(&self, link: LinkId) {
        if let Some(open) = self.lock().remove(&link) {
            open.cancelled.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LinkId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hello_frame(hello: &Hello) -> Queued {
    let Hello { header, lineage } = hello;
    let content = Content::Hello { lineage: lineage.clone(), unpacks: true };
    let frame = Frame { header: *header, content };
    Queued { frame: frame.into(), bytes: 0 }
}

/// The header that the refusal of a hello bears: the hello's own turned round, since whoever refuses may belong to
/// no cluster that it could name.
pub(super) fn refusal_header(refused: &Header) -> Header {
    Header { from: refused.to, to: refused.from, ..*refused }
}

fn refusal_frame(refused: &Header, refusal: LinkRefusal) -> Queued {
    let frame = Frame { header: refusal_header(refused), content: Content::Refusal(refusal) };
    Queued { frame: frame.into(), bytes: 0 }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use keystore_core::held::Lacking;
    use keystore_core::id::{ClusterId, Epoch, Generation, Incarnation, NodeId, Nonce};
    use keystore_core::message::{Call, Message, ReadOutcome, Refusal, ScanOutcome};
    use keystore_core::partition::RecordKey;
    use keystore_core::record::{Body, Record};
    use keystore_core::stamp::Stamp;
    use keystore_proto::v1::peer_frame::Kind;

    use super::super::packing::unpack;
    use super::*;

    fn hello(from: u8, to: u8) -> Hello {
        Hello {
            header: Header {
                cluster: ClusterId([9; 16]),
                incarnation: Incarnation { number: 1, id: 2 },
                epoch: Epoch(1),
                from: NodeId([from; 16]),
                to: NodeId([to; 16]),
                generation: Generation(3),
            },
            lineage: Nonce(4).into(),
        }
    }

    fn frame(link: LinkId, bytes: usize) -> OutgoingFrame {
        let message = Message::InitAccepted { digest: 5, reply_wanted: false, decided: false };
        let frame = Frame { header: hello(2, 1).header, content: Content::Messages(vec![message]) };
        OutgoingFrame { link, frame, bytes }
    }

    /// The link that `hello` has opened, what is sent on it, and the verdict on it.
    fn open(
        links: &Links,
        answers_hello: bool,
    ) -> (LinkId, OutgoingFrames, oneshot::Receiver<Option<Hello>>, CancellationToken) {
        let (link, frames) = outgoing();
        let cancelled = CancellationToken::new();
        let (id, verdict) = links.register(link, hello(1, 2), answers_hello, cancelled.clone());
        (id, frames, verdict, cancelled)
    }

    async fn sent(frames: &mut OutgoingFrames) -> Option<Content> {
        let frame = frames.next().await?;
        Some(Frame::try_from(frame).unwrap().content)
    }

    #[tokio::test]
    async fn the_accepting_side_says_hello_before_anything_else() {
        let links = Links::new(100);
        let (link, mut frames, verdict, _) = open(&links, true);
        links.decide(link, Verdict::Accepted(hello(2, 1)));
        links.send(frame(link, 1));
        assert_eq!(verdict.await.unwrap(), Some(hello(2, 1)));
        assert_eq!(sent(&mut frames).await, Some(Content::Hello { lineage: Nonce(4).into(), unpacks: true }));
        assert!(matches!(sent(&mut frames).await, Some(Content::Messages(_))));
    }

    #[tokio::test]
    async fn records_are_packed_only_for_whoever_has_said_that_it_can_unpack() {
        let value = Body::Value(vec![b'v'; 8 << 10].into());
        let record = Record { stamp: Stamp::from_bytes([1; 16]), body: value };
        let entries = vec![(RecordKey::new("default", b"k").unwrap(), record)];
        let outcome = ScanOutcome::Lacking(Lacking { entries, until: None });
        let call = Call { operation: 1, attempt: 0 };
        let content = Content::Messages(vec![Message::ScanAnswer { call, outcome, noted: Vec::new() }]);
        for unpacks in [false, true] {
            let links = Links::new(100_000);
            let (link, mut frames) = outgoing();
            if unpacks {
                link.pack();
            }
            let (link, _verdict) = links.register(link, hello(1, 2), false, CancellationToken::new());
            links.decide(link, Verdict::Accepted(hello(2, 1)));
            let frame = Frame { header: hello(2, 1).header, content: content.clone() };
            links.send(OutgoingFrame { link, frame, bytes: 8 << 10 });
            let sent = frames.next().await.unwrap();
            assert_eq!(matches!(sent.kind, Some(Kind::Packed(_))), unpacks);
            assert_eq!(Frame::try_from(unpack(sent).unwrap()).unwrap().content, content);
        }
    }

    #[tokio::test]
    async fn a_refused_link_ends_with_the_reason() {
        let links = Links::new(100);
        let (link, mut frames, verdict, _) = open(&links, true);
        links.decide(link, Verdict::Refused(LinkRefusal::StaleGeneration));
        links.remove(link);
        assert_eq!(verdict.await.unwrap(), None);
        let refusal = Frame::try_from(frames.next().await.unwrap()).unwrap();
        assert_eq!(refusal.content, Content::Refusal(LinkRefusal::StaleGeneration));
        assert_eq!((refusal.header.from, refusal.header.to), (NodeId([2; 16]), NodeId([1; 16])));
        assert!(frames.next().await.is_none());
    }

    #[tokio::test]
    async fn what_a_peer_wants_to_read_is_refused_before_its_link_is_given_up() {
        let call = Call { operation: 1, attempt: 0 };
        let record = Record { stamp: Stamp::from_bytes([1; 16]), body: Body::Tombstone };
        let answer = |outcome| Message::ReadAnswer { call, outcome, noted: Vec::new() };
        let links = Links::new(1_000);
        let (link, mut frames, _verdict, cancelled) = open(&links, false);
        links.decide(link, Verdict::Accepted(hello(2, 1)));
        for _ in 0..5 {
            let messages = vec![answer(ReadOutcome::Full(record.clone()))];
            let content = Content::Messages(messages);
            links.send(OutgoingFrame {
                link,
                frame: Frame { header: hello(2, 1).header, content },
                bytes: 300,
            });
        }
        assert!(!cancelled.is_cancelled());
        let refused = ReadOutcome::Refused(Refusal::Overloaded);
        let full = ReadOutcome::Full(record);
        for outcome in [full.clone(), full, refused.clone(), refused.clone(), refused] {
            assert_eq!(sent(&mut frames).await, Some(Content::Messages(vec![answer(outcome)])));
        }
    }

    #[tokio::test]
    async fn a_link_whose_queue_is_full_is_given_up_and_no_other() {
        let links = Links::new(100);
        let (slow, mut slow_frames, _slow, slow_cancelled) = open(&links, false);
        let (other, _other_frames, _other, other_cancelled) = open(&links, false);
        for link in [slow, other] {
            links.decide(link, Verdict::Accepted(hello(2, 1)));
        }
        links.send(frame(slow, 60));
        links.send(frame(other, 60));
        assert!(sent(&mut slow_frames).await.is_some(), "what was read does not count");
        links.send(frame(slow, 60));
        assert!(!slow_cancelled.is_cancelled());
        links.send(frame(slow, 60));
        assert!(slow_cancelled.is_cancelled());
        assert!(!other_cancelled.is_cancelled());
        assert_eq!(links.count(), 1);
    }
}
