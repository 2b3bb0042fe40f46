//! What is measured: a put and a get, sent to one node.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::channel::oneshot;
use keystore_proto::client::reason;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use thiserror::Error;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How sure a read is: a quorum (of etcd: linearizable), or one node (of etcd: serializable).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Quorum,
    One,
}

/// Durable before it is answered, or synced some milliseconds later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Synced,
    Periodic,
}

pub(crate) trait Target: Clone + 'static {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failed>;

    /// True if the key was found.
    async fn get(&self, key: Bytes) -> Result<bool, Failed>;
}

/// What an operation that failed was told.
#[derive(Debug, Clone, Error)]
#[error("{code:?} {reason}: {message}")]
pub(crate) struct Failed {
    code: Code,
    /// The store's; empty where there is none.
    reason: String,
    message: String,
}

impl Failed {
    /// Refused before anything was applied, since there is too much under way.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.code == Code::ResourceExhausted && self.reason == reason::OVERLOADED
    }

    pub(crate) fn not_found() -> Self {
        Status::not_found("a key that was written is not there").into()
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        Self { code: status.code(), reason, message: status.message().to_owned() }
    }
}

impl From<v1::Failure> for Failed {
    fn from(failure: v1::Failure) -> Self {
        let v1::Failure { code, reason, message, .. } = failure;
        Self { code: code.into(), reason, message }
    }
}

/// How the store's nodes are asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Levels {
    pub(crate) read: Read,
    pub(crate) write: Write,
}

impl Levels {
    pub(crate) fn get(self, key: Bytes) -> v1::GetRequest {
        let consistency = match self.read {
            Read::Quorum => v1::Consistency::Quorum,
            Read::One => v1::Consistency::One,
        };
        v1::GetRequest { key, consistency: consistency.into(), ..v1::GetRequest::default() }
    }

    pub(crate) fn put(self, key: Bytes, value: Bytes) -> v1::PutRequest {
        let durability = match self.write {
            Write::Synced => v1::Durability::Synced,
            Write::Periodic => v1::Durability::Periodic,
        };
        let consistency = v1::Consistency::Quorum.into();
        v1::PutRequest { key, value, consistency, durability: durability.into(), ..v1::PutRequest::default() }
    }
}

/// Each operation as a call of its own.
#[derive(Clone)]
pub(crate) struct Calls {
    client: KeyStoreClient<Channel>,
    levels: Levels,
}

impl Calls {
    pub(crate) fn new(channel: Channel, levels: Levels) -> Self {
        Self { client: KeyStoreClient::new(channel), levels }
    }
}

impl Target for Calls {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failed> {
        self.client.clone().put(self.levels.put(key, value)).await?;
        Ok(())
    }

    async fn get(&self, key: Bytes) -> Result<bool, Failed> {
        let answer = self.client.clone().get(self.levels.get(key)).await?;
        Ok(!answer.into_inner().values.is_empty())
    }
}

/// All operations of a node's clients over one stream.
#[derive(Clone)]
pub(crate) struct Stream {
    requests: UnboundedSender<v1::SessionRequest>,
    waiting: Rc<RefCell<HashMap<u64, oneshot::Sender<Outcome>>>>,
    next: Rc<Cell<u64>>,
    levels: Levels,
}

impl Stream {
    pub(crate) async fn open(channel: Channel, levels: Levels) -> Result<Self, Failed> {
        let (requests, receiver) = unbounded();
        let mut answers = KeyStoreClient::new(channel).session(receiver).await?.into_inner();
        let waiting: Rc<RefCell<HashMap<u64, oneshot::Sender<Outcome>>>> = Rc::default();
        let told = Rc::clone(&waiting);
        tokio::task::spawn_local(async move {
            while let Some(Ok(v1::SessionResponse { id, outcome })) = answers.next().await {
                let waits = told.borrow_mut().remove(&id);
                if let (Some(waits), Some(outcome)) = (waits, outcome.and_then(|outcome| outcome.outcome)) {
                    let _gone = waits.send(outcome);
                }
            }
            // Whoever still waits is told that nothing comes.
            told.borrow_mut().clear();
        });
        Ok(Self { requests, waiting, next: Rc::default(), levels })
    }

    async fn ask(&self, operation: Operation) -> Result<Outcome, Failed> {
        let id = self.next.replace(self.next.get() + 1);
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().insert(id, tell);
        let operation = Some(v1::Operation { operation: Some(operation) });
        let sent = self.requests.unbounded_send(v1::SessionRequest { id, timeout_ms: 0, operation });
        sent.map_err(|_| Status::unavailable("the stream has ended"))?;
        match told.await {
            Ok(Outcome::Failed(failure)) => Err(failure.into()),
            Ok(outcome) => Ok(outcome),
            Err(_) => Err(Status::unavailable("the stream has ended").into()),
        }
    }
}

impl Target for Stream {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failed> {
        self.ask(Operation::Put(self.levels.put(key, value))).await.map(drop)
    }

    async fn get(&self, key: Bytes) -> Result<bool, Failed> {
        let outcome = self.ask(Operation::Get(self.levels.get(key))).await?;
        Ok(matches!(outcome, Outcome::Got(got) if !got.values.is_empty()))
    }
}

/// One for each of these connections, whose operations are calls.
pub(crate) fn calls(channels: &[Channel], levels: Levels) -> Vec<Calls> {
    channels.iter().map(|channel| Calls::new(channel.clone(), levels)).collect()
}

/// One for each of these connections, whose operations share a stream.
pub(crate) async fn streams(channels: Vec<Channel>, levels: Levels) -> Result<Vec<Stream>, Failed> {
    let mut streams = Vec::new();
    for channel in channels {
        streams.push(Stream::open(channel, levels).await?);
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use keystore_proto::client::ERROR_DOMAIN;
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_is_told_by_its_reason_as_a_call_and_on_a_stream() {
        let call = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
            Failed::from(Status::with_error_details(code, "", details)).is_overloaded()
        };
        assert!(call(Code::ResourceExhausted, reason::OVERLOADED));
        assert!(!call(Code::ResourceExhausted, reason::DISK_FULL));
        assert!(!call(Code::Unavailable, reason::OVERLOADED));
        assert!(!Failed::from(Status::resource_exhausted("by whomever")).is_overloaded());
        let stream = |reason: &str| {
            let code = Code::ResourceExhausted.into();
            Failed::from(v1::Failure { code, reason: reason.to_owned(), ..v1::Failure::default() })
                .is_overloaded()
        };
        assert!(stream(reason::OVERLOADED));
        assert!(!stream(reason::DISK_FULL));
    }
}
