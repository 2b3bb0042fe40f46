//! What HTTP/2 itself can say about a request: a stream refused unseen is proof that nothing was applied, and
//! nothing else is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use bytes::{BufMut, Bytes, BytesMut};
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use keystore_client::{Client, Error, Routing, WriteOptions, Written};
use keystore_proto::v1::PutResponse;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What the server does with a request.
#[derive(Debug, Clone, Copy)]
enum Act {
    Serve,
    Reset(Reason),
    /// Answers with the head of a success and a body, but without a status at its end.
    ForgetStatus,
}

fn respond(mut respond: SendResponse<Bytes>, act: Act) {
    if let Act::Reset(reason) = act {
        return respond.send_reset(reason);
    }
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    let message = PutResponse { stamp: Bytes::from_static(&[1; 16]), acks: 2, ..PutResponse::default() };
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut body).unwrap();
    match act {
        Act::Serve => {
            stream.send_data(body.freeze(), false).unwrap();
            stream
                .send_trailers(HeaderMap::from_iter([(
                    "grpc-status".parse().unwrap(),
                    HeaderValue::from_static("0"),
                )]))
                .unwrap();
        }
        Act::Reset(_) | Act::ForgetStatus => stream.send_data(body.freeze(), true).unwrap(),
    }
}

/// Puts once against a server that acts like this, request by request; says how many requests it saw.
async fn put_against(acts: Vec<Act>) -> (Result<Written, Error>, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(0));
    let mut server = JoinSet::new();
    let count = seen.clone();
    server.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, response))) = connection.accept().await {
                let mut seen = count.lock().unwrap();
                respond(response, acts[*seen]);
                *seen += 1;
            }
        }
    });
    let client = Client::builder().endpoints([address]).mode(Routing::Proxy).connect().await.unwrap();
    let result = client.put("default", "k", "v", WriteOptions::default()).await;
    let seen = *seen.lock().unwrap();
    (result, seen)
}

#[tokio::test]
async fn a_write_on_a_stream_that_was_refused_unseen_is_sent_again() {
    let (result, requests) = put_against(vec![Act::Reset(Reason::REFUSED_STREAM), Act::Serve]).await;
    assert_eq!(result.unwrap().acks, 2);
    assert_eq!(requests, 2);
}

#[tokio::test]
async fn a_write_on_a_stream_that_ended_otherwise_is_unknown() {
    for act in [
        Act::Reset(Reason::CANCEL),
        Act::Reset(Reason::INTERNAL_ERROR),
        Act::Reset(Reason::NO_ERROR),
        Act::ForgetStatus,
    ] {
        let (result, requests) = put_against(vec![act, Act::Serve]).await;
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Unknown(_)), "{act:?}: {error}");
        assert_eq!(requests, 1, "{act:?}");
    }
}
