//! The body of an answer: what is held for it is given back once it was written to the socket.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::memory::{Held, SMALL_BYTES, Unsent};

/// Takes over what the handler has left in the response's extensions.
pub fn keep_until_sent(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<Unsent>() {
        Some(unsent) => response.map(|inner| Body::new(Sending { inner, unsent })),
        None => response,
    }
}

struct Sending {
    inner: Body,
    unsent: Unsent,
}

/// A piece of the body, dropped by HTTP/2 when it was written.
struct Piece {
    data: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = Pin::new(&mut self.inner).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = next else { return next };
        // Of what is small, HTTP/2 holds no more than a stream's share.
        let held = self.unsent.take().filter(|held| held.bytes() > SMALL_BYTES);
        let frame = match held {
            Some(held) => frame.map_data(|data| Bytes::from_owner(Piece { data, _held: held })),
            None => frame,
        };
        Poll::Ready(Some(Ok(frame)))
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
    use http_body_util::{BodyExt as _, Full};

    use super::*;
    use crate::memory::Memory;

    #[tokio::test]
    async fn memory_is_held_until_the_last_byte_is_let_go() {
        let memory = Memory::new(100 * SMALL_BYTES);
        let unsent = Unsent::default();
        unsent.add(memory.take(2 * SMALL_BYTES));
        let mut response = Response::new(Body::new(Full::new(Bytes::from_static(b"answer"))));
        response.extensions_mut().insert(unsent);
        let mut body = keep_until_sent(response).into_body();
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(body);
        assert_eq!(memory.left(), 98 * SMALL_BYTES, "HTTP/2 has it");
        assert_eq!(data, "answer");
        drop(data);
        assert_eq!(memory.left(), 100 * SMALL_BYTES);
    }
}
