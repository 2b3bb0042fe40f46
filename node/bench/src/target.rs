//! What is measured: a put and a get, sent to one node.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::channel::oneshot;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use tonic::Status;
use tonic::transport::Channel;

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
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Status>;

    /// True if the key was found.
    async fn get(&self, key: Bytes) -> Result<bool, Status>;
}

/// How the store's nodes are asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Levels {
    pub(crate) read: Read,
    pub(crate) write: Write,
}

impl Levels {
    fn get(self, key: Bytes) -> v1::GetRequest {
        let consistency = match self.read {
            Read::Quorum => v1::Consistency::Quorum,
            Read::One => v1::Consistency::One,
        };
        v1::GetRequest { key, consistency: consistency.into(), ..v1::GetRequest::default() }
    }

    fn put(self, key: Bytes, value: Bytes) -> v1::PutRequest {
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
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Status> {
        self.client.clone().put(self.levels.put(key, value)).await.map(drop)
    }

    async fn get(&self, key: Bytes) -> Result<bool, Status> {
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
    pub(crate) async fn open(channel: Channel, levels: Levels) -> Result<Self, Status> {
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

    async fn ask(&self, operation: Operation) -> Result<Outcome, Status> {
        let id = self.next.replace(self.next.get() + 1);
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().insert(id, tell);
        let operation = Some(v1::Operation { operation: Some(operation) });
        let sent = self.requests.unbounded_send(v1::SessionRequest { id, timeout_ms: 0, operation });
        sent.map_err(|_| Status::unavailable("the stream has ended"))?;
        match told.await {
            Ok(Outcome::Failed(v1::Failure { code, message, .. })) => Err(Status::new(code.into(), message)),
            Ok(outcome) => Ok(outcome),
            Err(_) => Err(Status::unavailable("the stream has ended")),
        }
    }
}

impl Target for Stream {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Status> {
        self.ask(Operation::Put(self.levels.put(key, value))).await.map(drop)
    }

    async fn get(&self, key: Bytes) -> Result<bool, Status> {
        let outcome = self.ask(Operation::Get(self.levels.get(key))).await?;
        Ok(matches!(outcome, Outcome::Got(got) if !got.values.is_empty()))
    }
}
