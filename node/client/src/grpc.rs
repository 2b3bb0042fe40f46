//! One unary gRPC call on an HTTP/2 connection.
//!
//! Written on h2 itself for two reasons: the failure of a call says whether the request can have reached the other
//! side, which no retry can be decided without; and a call costs one buffer and no task. Compression is not
//! offered and so never comes back.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_TYPE, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use keystore_proto::client::ERROR_DOMAIN;
use prost::Message;
use std::time::Duration;
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt};

/// The largest answer: a value of 1 MiB or the layout of the largest cluster, with room to spare.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// A gRPC message starts with a flag (compressed or not) and its length.
const PREFIX_BYTES: usize = 5;

/// How a call ended without its answer.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// The request has not reached the other side's service, and never will.
    #[error("the connection was closed before the request was sent: {0}")]
    NotSent(h2::Error),
    /// The request was sent, and it cannot be told what became of it.
    #[error("the connection broke before the answer came: {0}")]
    Broken(h2::Error),
    /// There is an answer, but it is none of a KeyStore node.
    #[error("the answer makes no sense: {0}")]
    BadAnswer(String),
    #[error(transparent)]
    Status(Status),
}

impl CallError {
    /// The ErrorInfo of our domain, which only a node's own answer has.
    pub(crate) fn node_info(&self) -> Option<ErrorInfo> {
        match self {
            Self::Status(status) => {
                status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN)
            }
            Self::NotSent(_) | Self::Broken(_) | Self::BadAnswer(_) => None,
        }
    }

    /// True if the request may have been served, and its node has not said how.
    pub(crate) fn proves_nothing(&self) -> bool {
        !matches!(self, Self::NotSent(_)) && self.node_info().is_none()
    }
}

/// What every call on one connection has in common.
#[derive(Clone)]
pub(crate) struct Caller {
    pub sender: SendRequest<Bytes>,
    pub authority: Authority,
}

/// Calls `path` ("/package.Service/Method"). `timeout` is only told to the other side: keeping it is the caller's.
pub(crate) async fn unary<Q: Message, A: Message + Default>(
    caller: Caller,
    path: &'static str,
    request: &Q,
    timeout: Duration,
) -> Result<A, CallError> {
    let Caller { sender, authority } = caller;
    let head = request_head(authority, path, timeout)?;
    let body = frame(request)?;
    let mut sender = sender.ready().await.map_err(CallError::NotSent)?;
    let (response, mut stream) = sender.send_request(head, false).map_err(CallError::NotSent)?;
    // The stream is open from here on. Data is queued in h2 whatever the window, and without a copy.
    stream.send_data(body, true).map_err(broken)?;
    decode(receive(response).await?)
}

fn request_head(
    authority: Authority,
    path: &'static str,
    timeout: Duration,
) -> Result<Request<()>, CallError> {
    let bad = |error: http::Error| CallError::BadAnswer(error.to_string());
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(PathAndQuery::from_static(path))
        .build()
        .map_err(bad)?;
    let mut head = Request::new(());
    *head.method_mut() = Method::POST;
    *head.version_mut() = Version::HTTP_2;
    *head.uri_mut() = uri;
    let headers = head.headers_mut();
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-timeout", timeout_header(timeout));
    Ok(head)
}

/// In milliseconds and rounded up, so that the same timeout is the same header, which HTTP/2 sends as one byte.
fn timeout_header(timeout: Duration) -> HeaderValue {
    const DIGITS_MAX: u128 = 99_999_999;
    let ms = timeout.as_micros().div_ceil(1000).clamp(1, DIGITS_MAX);
    HeaderValue::from_str(&format!("{ms}m")).expect("digits are a header value")
}

fn frame<Q: Message>(request: &Q) -> Result<Bytes, CallError> {
    let length = request.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(
        u32::try_from(length)
            .map_err(|_| CallError::Status(Status::invalid_argument("the request is larger than 4 GiB")))?,
    );
    request.encode(&mut buffer).expect("the buffer has the room that was asked for");
    Ok(buffer.freeze())
}

/// A stream that was refused by the other side was surely not looked at (RFC 9113, 8.7); of any other failure
/// nothing can be said.
fn broken(error: h2::Error) -> CallError {
    if error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        CallError::NotSent(error)
    } else {
        CallError::Broken(error)
    }
}

/// The body of a call that succeeded. One that failed is mostly answered by a head alone, which has the status then.
async fn receive(response: ResponseFuture) -> Result<Bytes, CallError> {
    let (head, mut stream) = response.await.map_err(broken)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(CallError::BadAnswer(format!("HTTP status {}", head.status)));
    }
    if head.headers.contains_key(Status::GRPC_STATUS) {
        check_status(&head.headers)?;
        return collect(&mut stream).await;
    }
    let body = collect(&mut stream).await?;
    let trailers = stream.trailers().await.map_err(broken)?;
    check_status(&trailers.unwrap_or_default())?;
    Ok(body)
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(CallError::Status(status)),
        None => Err(CallError::BadAnswer("it has no grpc-status".to_owned())),
    }
}

/// The body in one piece; the usual case, a single frame, is not copied.
async fn collect(stream: &mut RecvStream) -> Result<Bytes, CallError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.map_err(broken)?;
        // Fails only on a stream that is closed already, which the next read tells.
        let _ = stream.flow_control().release_capacity(chunk.len());
        if first.len() + rest.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(CallError::BadAnswer(format!("it is larger than {ANSWER_BYTES_MAX} bytes")));
        }
        if first.is_empty() {
            first = chunk;
        } else {
            rest.extend_from_slice(&chunk);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(first.len() + rest.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(&rest);
    Ok(all.freeze())
}

fn decode<A: Message + Default>(mut body: Bytes) -> Result<A, CallError> {
    let bad = |message: &str| CallError::BadAnswer(message.to_owned());
    if body.len() < PREFIX_BYTES {
        return Err(bad("it has no message"));
    }
    if body.get_u8() != 0 {
        return Err(bad("it is compressed"));
    }
    let length = body.get_u32();
    if usize::try_from(length) != Ok(body.len()) {
        return Err(bad("its length is not the one that it names"));
    }
    A::decode(body).map_err(|error| CallError::BadAnswer(error.to_string()))
}
