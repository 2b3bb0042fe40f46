//! Requests of the client service, and what is in their answers, for tests that look at the wire itself.

use std::collections::BTreeSet;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::{FutureExt as _, StreamExt as _};
use keystore_proto::v1;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

use super::{CAUSAL, NodeProcess};

pub fn put(keyspace: &str, key: &str, value: &str) -> v1::PutRequest {
    v1::PutRequest {
        keyspace: keyspace.to_owned(),
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..v1::PutRequest::default()
    }
}

pub fn get(keyspace: &str, key: &str) -> v1::GetRequest {
    v1::GetRequest { keyspace: keyspace.to_owned(), key: key.to_owned().into(), ..v1::GetRequest::default() }
}

pub fn delete(keyspace: &str, key: &str) -> v1::DeleteRequest {
    let (keyspace, key) = (keyspace.to_owned(), key.to_owned().into());
    v1::DeleteRequest { keyspace, key, ..v1::DeleteRequest::default() }
}

pub fn operation(operation: Operation) -> v1::Operation {
    v1::Operation { operation: Some(operation) }
}

/// What a read of the causal keyspace shows.
pub struct Siblings {
    pub values: BTreeSet<String>,
    pub context: bytes::Bytes,
}

impl NodeProcess {
    pub async fn siblings(&self, key: &str) -> Siblings {
        let mut client = self.client().max_decoding_message_size(64 << 20);
        let got = client.get(get(CAUSAL, key)).await.unwrap().into_inner();
        let count = got.values.len();
        let values: BTreeSet<_> = got.values.into_iter().map(|value| text(&value.value)).collect();
        assert_eq!(values.len(), count, "no value is shown twice");
        Siblings { values, context: got.context }
    }

    pub async fn batch(&self, operations: Vec<Operation>) -> Result<Vec<Outcome>, Status> {
        let operations = operations.into_iter().map(operation).collect();
        let response = self.client().batch(v1::BatchRequest { operations }).await?.into_inner();
        Ok(response.outcomes.into_iter().map(|outcome| outcome.outcome.unwrap()).collect())
    }

    /// Everything that a scan tells, in its order.
    pub async fn scan(&self, request: v1::ScanRequest) -> Result<Vec<v1::ScanEntry>, Status> {
        let mut messages = self.client().scan(request).await?.into_inner();
        let mut entries = Vec::new();
        while let Some(message) = messages.message().await? {
            assert!(!message.entries.is_empty(), "a message without a key");
            entries.extend(message.entries);
        }
        Ok(entries)
    }

    pub async fn session(&self) -> Session {
        let (sending, receiving) = unbounded();
        // What is ready at once would go into one HTTP/2 frame; many clients make a frame of each request.
        let one_by_one = receiving.then(|request| tokio::task::yield_now().map(|()| request));
        let answers = self.client().session(one_by_one).await.unwrap().into_inner();
        Session { sending: Some(sending), answers }
    }
}

/// An open session.
pub struct Session {
    sending: Option<UnboundedSender<v1::SessionRequest>>,
    pub answers: Streaming<v1::SessionResponse>,
}

impl Session {
    pub fn send(&self, id: u64, timeout_ms: u32, of: Operation) {
        let request = v1::SessionRequest { id, timeout_ms, operation: Some(operation(of)) };
        // The stream may have ended: what is asked after that is not answered.
        let _ = self.sending.as_ref().unwrap().unbounded_send(request);
    }

    /// Nothing more will be asked.
    pub fn half_close(&mut self) {
        self.sending = None;
    }

    pub async fn answer(&mut self) -> Option<Result<(u64, Outcome), Status>> {
        let answer = self.answers.next().await?;
        Some(answer.map(|response| (response.id, response.outcome.unwrap().outcome.unwrap())))
    }
}

/// The code and reason of an outcome that failed.
pub fn failure(outcome: &Outcome) -> (tonic::Code, &str) {
    match outcome {
        Outcome::Failed(failure) => (failure.code.into(), &failure.reason),
        other => panic!("it was done: {other:?}"),
    }
}

pub fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("an ErrorInfo").reason
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
