//! gRPC on an HTTP/2 connection: one message each way, or streams of them.
//!
//! Written on h2 itself for two reasons: the failure of a call says whether the request can have reached the other
//! side, which no retry can be decided without; and a call costs one buffer and no task. Compression is not
//! offered and so never comes back.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use keystore_proto::unseen::is_unseen;
use keystore_proto::v1;
use prost::Message;
use thiserror::Error;
use tonic::{Code, Status};

/// The largest message that is accepted: a batch's answer or the layout of the largest cluster, with room to spare.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// A gRPC message starts with a flag (compressed or not) and its length.
const PREFIX_BYTES: usize = 5;

/// How a call ended without its answer.
#[derive(Debug, Clone, Error)]
pub(crate) enum CallError {
    /// The request has not reached the other side's service, and never will.
    #[error("the connection was closed before the request was sent: {0}")]
    NotSent(String),
    /// The request was sent, and it cannot be told what became of it.
    #[error("the connection broke before the answer came: {0}")]
    Broken(String),
    /// There is an answer, but it is none of a KeyStore node.
    #[error("the answer makes no sense: {0}")]
    BadAnswer(String),
    #[error(transparent)]
    Status(Status),
    /// What a node says of one operation of a batch or a session.
    #[error("{}", .0.message)]
    Failure(v1::Failure),
}

/// What every call on one connection has in common.
#[derive(Clone)]
pub(crate) struct Caller {
    pub sender: SendRequest<Bytes>,
    pub authority: Authority,
}

impl Caller {
    /// Calls `path` ("/package.Service/Method") with one message for one answer. `timeout` is only told to the other
    /// side: keeping it is the caller's.
    pub(crate) async fn unary<Q: Message, A: Message + Default>(
        self,
        path: &'static str,
        request: &Q,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let mut answers = self.stream_answers(path, request, Some(timeout)).await?;
        let answer = answers.next().await?;
        let answer = answer.ok_or_else(|| CallError::BadAnswer("it has no message".to_owned()))?;
        match answers.next::<A>().await? {
            None => Ok(answer),
            Some(_) => Err(CallError::BadAnswer("it has more than one message".to_owned())),
        }
    }

    /// One message for a stream of answers.
    pub(crate) async fn stream_answers<Q: Message>(
        self,
        path: &'static str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<Messages, CallError> {
        let mut body = BytesMut::with_capacity(PREFIX_BYTES + request.encoded_len());
        frame(request, &mut body)?;
        let (response, mut stream) = self.open(path, timeout).await?;
        // The stream is open from here on. Data is queued in h2 whatever the window, and without a copy.
        stream.send_data(body.freeze(), true).map_err(|error| broken(&error))?;
        Messages::begin(response).await
    }

    /// Opens a stream in both directions. Nothing is sent if it fails.
    pub(crate) async fn open(
        self,
        path: &'static str,
        timeout: Option<Duration>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), CallError> {
        let Self { sender, authority } = self;
        let not_sent = |error: h2::Error| CallError::NotSent(error.to_string());
        let head = request_head(authority, path, timeout)?;
        let mut sender = sender.ready().await.map_err(not_sent)?;
        sender.send_request(head, false).map_err(not_sent)
    }
}

fn request_head(
    authority: Authority,
    path: &'static str,
    timeout: Option<Duration>,
) -> Result<Request<()>, CallError> {
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(PathAndQuery::from_static(path))
        .build()
        .map_err(|error| CallError::NotSent(error.to_string()))?;
    let mut head = Request::new(());
    *head.method_mut() = Method::POST;
    *head.version_mut() = Version::HTTP_2;
    *head.uri_mut() = uri;
    let headers = head.headers_mut();
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(timeout) = timeout {
        headers.insert("grpc-timeout", timeout_header(timeout));
    }
    Ok(head)
}

/// In milliseconds and rounded up, so that the same timeout is the same header, which HTTP/2 sends as one byte.
fn timeout_header(timeout: Duration) -> HeaderValue {
    const DIGITS_MAX: u128 = 99_999_999;
    let ms = timeout.as_micros().div_ceil(1000).clamp(1, DIGITS_MAX);
    HeaderValue::from_str(&format!("{ms}m")).expect("digits are a header value")
}

/// Appends a message with its prefix.
pub(crate) fn frame<Q: Message>(message: &Q, buffer: &mut BytesMut) -> Result<(), CallError> {
    let length = u32::try_from(message.encoded_len())
        .map_err(|_| CallError::Status(Status::invalid_argument("the request is larger than 4 GiB")))?;
    buffer.put_u8(0);
    buffer.put_u32(length);
    message.encode(buffer).expect("the buffer grows");
    Ok(())
}

fn broken(error: &h2::Error) -> CallError {
    if is_unseen(error) {
        CallError::NotSent(error.to_string())
    } else {
        CallError::Broken(error.to_string())
    }
}

/// The answers of one call, as they come.
pub(crate) struct Messages {
    stream: RecvStream,
    buffer: BytesMut,
    /// The head has told the status already; mostly of a call that failed.
    status_is_told: bool,
}

impl Messages {
    /// Waits for the head of the answer.
    pub(crate) async fn begin(response: ResponseFuture) -> Result<Self, CallError> {
        let (head, stream) = response.await.map_err(|error| broken(&error))?.into_parts();
        if head.status != StatusCode::OK {
            return Err(CallError::BadAnswer(format!("HTTP status {}", head.status)));
        }
        let status_is_told = head.headers.contains_key(Status::GRPC_STATUS);
        if status_is_told {
            check_status(&head.headers)?;
        }
        Ok(Self { stream, buffer: BytesMut::new(), status_is_told })
    }

    /// `None` once all have come and the other side says that it is done.
    pub(crate) async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, CallError> {
        loop {
            if let Some(message) = self.take_message()? {
                let decoded = A::decode(message).map_err(|error| CallError::BadAnswer(error.to_string()))?;
                return Ok(Some(decoded));
            }
            let Some(chunk) = self.stream.data().await else { break };
            // Something was answered: the stream was not refused unseen, whatever it says now.
            let chunk = chunk.map_err(|error| CallError::Broken(error.to_string()))?;
            // Fails only on a stream that is closed already, which the next read tells.
            let _ = self.stream.flow_control().release_capacity(chunk.len());
            self.buffer.extend_from_slice(&chunk);
        }
        if !self.status_is_told {
            let trailers = self.stream.trailers().await;
            let trailers = trailers.map_err(|error| CallError::Broken(error.to_string()))?;
            check_status(&trailers.unwrap_or_default())?;
            self.status_is_told = true;
        }
        match self.buffer.is_empty() {
            true => Ok(None),
            false => Err(CallError::BadAnswer("its last message is cut".to_owned())),
        }
    }

    /// The first message of the buffer, if all of it is there.
    fn take_message(&mut self) -> Result<Option<Bytes>, CallError> {
        let bad = |message: String| Err(CallError::BadAnswer(message));
        let mut unread = &self.buffer[..];
        let (Ok(flag), Ok(length)) = (unread.try_get_u8(), unread.try_get_u32()) else { return Ok(None) };
        if flag != 0 {
            return bad("it is compressed".to_owned());
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > ANSWER_BYTES_MAX {
            return bad(format!("it is larger than {ANSWER_BYTES_MAX} bytes"));
        }
        if unread.len() < length {
            self.buffer.reserve(length - unread.len());
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(CallError::Status(status)),
        None => Err(CallError::BadAnswer("it has no grpc-status".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use h2::Reason;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SETTINGS: u8 = 4;
    const GO_AWAY: u8 = 7;
    /// What every client says first.
    const PREFACE_BYTES: usize = 24;
    const FRAME_HEADER_BYTES: usize = 9;
    const HEADERS: u8 = 1;

    fn frame_of(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 0][..], payload].concat()
    }

    /// How a call ends whose stream the other side has seen, or not, before it went away for this reason.
    async fn left(last_seen: u32, reason: Reason) -> CallError {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let other_side = async move {
            theirs.write_all(&frame_of(SETTINGS, &[])).await.unwrap();
            theirs.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
            let mut head = [0; FRAME_HEADER_BYTES];
            while head[3] != HEADERS {
                theirs.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                theirs.read_exact(&mut vec![0; length as usize]).await.unwrap();
            }
            let payload = [last_seen.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
            theirs.write_all(&frame_of(GO_AWAY, &payload)).await.unwrap();
        };
        let (sender, connection) = h2::client::handshake(ours).await.unwrap();
        tokio::spawn(connection);
        let caller = Caller { sender, authority: Authority::from_static("node") };
        let call = async {
            let (response, _stream) = caller.open("/a.Service/Method", None).await.unwrap();
            Messages::begin(response).await.map(drop).unwrap_err()
        };
        tokio::join!(call, other_side).0
    }

    #[tokio::test]
    async fn what_a_node_that_goes_away_has_not_seen_was_not_sent() {
        assert!(matches!(left(0, Reason::NO_ERROR).await, CallError::NotSent(_)));
        for (last_seen, reason) in
            [(1, Reason::NO_ERROR), (1, Reason::INTERNAL_ERROR), (0, Reason::INTERNAL_ERROR)]
        {
            let error = left(last_seen, reason).await;
            assert!(matches!(error, CallError::Broken(_)), "{last_seen}, {reason:?}: {error}");
        }
    }
}
