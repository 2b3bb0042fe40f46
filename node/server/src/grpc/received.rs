//! The body of a client's request while it comes in: bounded in memory and in time.
//!
//! A message says how long it is before it comes. One that is large is let in only once there is memory for all of it,
//! so that messages that are half there never fill the node; and what does not come whole within a time does not come
//! at all.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::outcome::Failed;
use crate::memory::{Held, Memory, SMALL_BYTES};

/// How long a message may take to come in.
const RECEIVED_WITHIN: Duration = Duration::from_secs(30);
/// How soon a session whose next message found no memory looks for it again.
const LOOK: Duration = Duration::from_millis(100);
/// What precedes a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

type Timer = Option<Pin<Box<Sleep>>>;

pub struct Received<B> {
    inner: B,
    memory: Memory,
    kind: Kind,
    message: Message,
    held: Option<Held>,
    limit: Timer,
    look: Timer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One message; what is held for it is held until the whole request was taken in.
    Call,
    /// One after another, with any time between them.
    Session,
}

/// Where in its message a body is.
#[derive(Debug, Default)]
struct Message {
    prefix: [u8; PREFIX_BYTES],
    /// Of the prefix, so many bytes are there.
    prefixed: usize,
    /// So many bytes of the message are still to come.
    left: usize,
    /// What a large one takes.
    large: Option<usize>,
}

impl Message {
    fn pass(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let bytes = self.left.min(data.len());
                self.left -= bytes;
                data.advance(bytes);
                if self.left == 0 {
                    self.large = None;
                }
                continue;
            }
            let Some(free) = self.prefix.get_mut(self.prefixed..) else { return };
            let bytes = free.len().min(data.len());
            data.copy_to_slice(&mut free[..bytes]);
            self.prefixed += bytes;
            if self.prefixed == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.prefixed = 0;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.large = Some(self.left).filter(|left| *left > SMALL_BYTES);
            }
        }
    }

    /// True between messages.
    fn is_whole(&self) -> bool {
        self.left == 0 && self.prefixed == 0
    }
}

impl<B> Received<B> {
    pub fn new(inner: B, memory: Memory, kind: Kind) -> Self {
        Self { inner, memory, kind, message: Message::default(), held: None, limit: None, look: None }
    }

    /// False if there is no memory for the message that comes in.
    fn has_memory(&mut self) -> bool {
        if let (Some(large), None) = (self.message.large, &self.held) {
            self.held = self.memory.take(large);
        }
        self.message.large.is_none() || self.held.is_some()
    }

    fn is_awaited(&self) -> bool {
        self.kind == Kind::Call || !self.message.is_whole()
    }

    /// Whoever waits for more waits no longer than this.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if !self.is_awaited() {
            return Poll::Pending;
        }
        let limit = self.limit.get_or_insert_with(|| Box::pin(sleep(RECEIVED_WITHIN)));
        ready!(limit.as_mut().poll(context));
        Poll::Ready(match self.message.large.is_some() && self.held.is_none() {
            true => Failed::full().into(),
            false => Failed::incomplete(RECEIVED_WITHIN).into(),
        })
    }
}

impl<B> Body for Received<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        while !this.has_memory() {
            let look = this.look.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            if look.as_mut().poll(context).is_pending() {
                return this.wait(context).map(|status| Some(Err(status.into())));
            }
            this.look = None;
        }
        let Poll::Ready(next) = Pin::new(&mut this.inner).poll_frame(context) else {
            return this.wait(context).map(|status| Some(Err(status.into())));
        };
        if let Some(data) = next.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            this.message.pass(data);
            if this.message.is_whole() && this.kind == Kind::Session {
                this.held = None;
                this.limit = None;
            }
            if this.kind == Kind::Call && !this.has_memory() {
                return Poll::Ready(Some(Err(Status::from(Failed::full()).into())));
            }
        }
        Poll::Ready(next.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc::{UnboundedSender, unbounded};
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;

    type Sender = UnboundedSender<Result<Frame<Bytes>, Status>>;

    const ALL: usize = 16 * SMALL_BYTES;

    fn received(
        memory: &Memory,
        kind: Kind,
    ) -> (Sender, Received<impl Body<Data = Bytes, Error = Status> + use<>>) {
        let (sender, frames) = unbounded();
        (sender, Received::new(StreamBody::new(frames), memory.clone(), kind))
    }

    fn send(sender: &Sender, data: Vec<u8>) {
        sender.unbounded_send(Ok(Frame::data(data.into()))).unwrap();
    }

    /// The prefix of a message, and so many of its bytes.
    fn begin(length: usize, bytes: usize) -> Vec<u8> {
        let mut data = vec![0];
        data.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        data.resize(PREFIX_BYTES + bytes, 7);
        data
    }

    fn code(result: Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>) -> Code {
        Status::from_error(result.unwrap().unwrap_err()).code()
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_call_has_its_memory_before_it_comes_and_keeps_it_until_all_was_taken_in() {
        let memory = Memory::new(ALL);
        let (sender, mut body) = received(&memory, Kind::Call);
        send(&sender, begin(8 * SMALL_BYTES, 10));
        body.frame().await.unwrap().unwrap();
        assert_eq!(memory.left(), ALL / 2);
        send(&sender, vec![7; 8 * SMALL_BYTES - 10]);
        body.frame().await.unwrap().unwrap();
        assert_eq!(memory.left(), ALL / 2, "it is not decoded yet");
        let (other, mut second) = received(&memory, Kind::Call);
        send(&other, begin(8 * SMALL_BYTES, 10));
        assert_eq!(code(second.frame().await), Code::ResourceExhausted);
        drop(body);
        assert_eq!(memory.left(), ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn small_calls_take_nothing_and_what_never_comes_ends() {
        let memory = Memory::new(ALL);
        let (sender, mut body) = received(&memory, Kind::Call);
        send(&sender, begin(SMALL_BYTES, SMALL_BYTES - 1));
        body.frame().await.unwrap().unwrap();
        assert_eq!(memory.left(), ALL);
        let begun = Instant::now();
        assert_eq!(code(body.frame().await), Code::DeadlineExceeded);
        assert_eq!(begun.elapsed(), RECEIVED_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_waits_for_memory_and_may_be_silent_between_messages() {
        let memory = Memory::new(ALL);
        let held = memory.take(8 * SMALL_BYTES).unwrap();
        let (sender, mut body) = received(&memory, Kind::Session);
        // The prefix in two pieces.
        let (large, rest) = (begin(8 * SMALL_BYTES, 0), vec![7; 8 * SMALL_BYTES]);
        send(&sender, large[..3].to_vec());
        send(&sender, large[3..].to_vec());
        send(&sender, rest);
        body.frame().await.unwrap().unwrap();
        body.frame().await.unwrap().unwrap();
        let next = tokio::spawn(async move {
            let next = body.frame().await;
            (next, body)
        });
        sleep(10 * LOOK).await;
        assert!(!next.is_finished(), "there is no memory for the rest");
        drop(held);
        let (next, mut body) = next.await.unwrap();
        assert_eq!(next.unwrap().unwrap().data_ref().unwrap().len(), 8 * SMALL_BYTES);
        assert_eq!(memory.left(), ALL, "it was handed on");
        let silent = tokio::time::timeout(10 * RECEIVED_WITHIN, body.frame()).await;
        assert!(silent.is_err(), "nothing has begun that could be late");
        send(&sender, begin(1, 0));
        body.frame().await.unwrap().unwrap();
        assert_eq!(code(body.frame().await), Code::DeadlineExceeded);
    }
}
