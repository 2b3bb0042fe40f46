//! The store as the load generator sees it: requests at quorum, with the outcomes of a history.
//!
//! Translates keystore-client's answers; decides nothing. A test may put a store of its own behind the same trait.

use std::future::Future;
use std::time::Duration;

use keystore_client::{
    Answer, Causal, Client, Consistency, Context, Durability, Error, Operation, Read, ReadOptions, Routing,
    ScanOptions, WriteOptions,
};
use keystore_history::{Key, ReadOutcome, ScanOutcome, Seen, Stamp, WriteOutcome};

/// A request that has no answer by then counts as failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The keyspace of every scenario's store that keeps siblings.
pub const CAUSAL_KEYSPACE: &str = "causal";

/// What an answer has shown of a key in the causal keyspace, for a write that replaces it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub values: Vec<Vec<u8>>,
    /// The store's own word for it; none where it has given none.
    pub context: Option<Context>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Put { value: String, ttl: Option<Duration>, known: Known },
    Delete { known: Known },
}

impl Request {
    /// A value for ever, whatever was there before.
    pub fn put(value: impl Into<String>) -> Self {
        Self::Put { value: value.into(), ttl: None, known: Known::default() }
    }

    pub fn delete() -> Self {
        Self::Delete { known: Known::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Read(ReadOutcome, Option<Context>),
    Written(WriteOutcome, Option<Context>),
}

impl Reply {
    /// True of an acknowledged write and of a read with an answer.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Read(outcome, _) => outcome.is_answered(),
            Self::Written(outcome, _) => matches!(outcome, WriteOutcome::Done { .. }),
        }
    }
}

pub trait Store: Clone + Send + Sync + 'static {
    fn ask(&self, key: &Key, request: &Request) -> impl Future<Output = Reply> + Send;
    /// Several at once, each with a reply of its own, in their order.
    fn batch(&self, requests: &[(Key, Request)]) -> impl Future<Output = Vec<Reply>> + Send;
    /// Every key that begins with a prefix.
    fn scan(&self, keyspace: &str, prefix: &[u8]) -> impl Future<Output = ScanOutcome> + Send;
}

/// The real store: quorum reads, quorum writes synced to disk, the client's default retries.
#[derive(Clone)]
pub struct ClientStore(Client);

impl ClientStore {
    /// Sends everything through the given endpoints, host:port. Fails when none of them answers.
    pub async fn connect(endpoints: Vec<String>) -> Result<Self, Error> {
        let client = Client::builder()
            .endpoints(endpoints)
            .mode(Routing::Proxy)
            .timeout(REQUEST_TIMEOUT)
            .consistency(Consistency::Quorum)
            .durability(Durability::Synced)
            .connect()
            .await?;
        Ok(Self(client))
    }

    /// The same, with all requests on one stream to each node.
    pub fn in_session(&self) -> Self {
        Self(self.0.session())
    }

    pub fn client(&self) -> &Client {
        &self.0
    }

    /// What the node that is asked has itself, where it owns the key: it asks nobody else.
    pub async fn get_at_one(&self, key: &Key) -> ReadOutcome {
        let options = ReadOptions { consistency: Some(Consistency::One), ..ReadOptions::default() };
        let result = self.0.get(&key.keyspace, key.key.clone(), options).await;
        result.map_or_else(|error| ReadOutcome::Unanswered(error.to_string()), |read| read_outcome(&read))
    }
}

impl Store for ClientStore {
    async fn ask(&self, key: &Key, request: &Request) -> Reply {
        let Key { keyspace, key: name } = key.clone();
        let result = match request {
            Request::Get => self.0.get(&keyspace, name, ReadOptions::default()).await.map(Answer::Read),
            Request::Put { value, .. } => {
                let options = write_options(key, request);
                self.0.put(&keyspace, name, value.clone(), options).await.map(Answer::Written)
            }
            Request::Delete { .. } => {
                let options = write_options(key, request);
                self.0.delete(&keyspace, name, options).await.map(Answer::Written)
            }
        };
        reply(request, result)
    }

    async fn batch(&self, requests: &[(Key, Request)]) -> Vec<Reply> {
        let operations: Result<Vec<_>, _> =
            requests.iter().map(|(key, request)| operation(key, request)).collect();
        let results = match operations {
            Ok(operations) => self.0.batch(operations).await,
            Err(error) => Err(error),
        };
        match results {
            Ok(results) => {
                requests.iter().zip(results).map(|((_, request), result)| reply(request, result)).collect()
            }
            Err(error) => requests.iter().map(|(_, request)| reply(request, Err(error.clone()))).collect(),
        }
    }

    async fn scan(&self, keyspace: &str, prefix: &[u8]) -> ScanOutcome {
        let scan = async {
            let options = ScanOptions { prefix: prefix.to_vec().into(), ..ScanOptions::default() };
            let mut scan = self.0.scan(keyspace, options)?;
            let mut found = Vec::new();
            while let Some(entry) = scan.next().await? {
                found.push((entry.key.to_vec(), seen(&entry.read)));
            }
            Ok::<_, Error>(found)
        };
        match scan.await {
            Ok(found) => ScanOutcome::Found(found),
            Err(error) => ScanOutcome::Unanswered(error.to_string()),
        }
    }
}

fn operation(key: &Key, request: &Request) -> Result<Operation, Error> {
    let Key { keyspace, key: name } = key.clone();
    let options = write_options(key, request);
    match request {
        Request::Get => Operation::get(&keyspace, name, ReadOptions::default()),
        Request::Put { value, .. } => Operation::put(&keyspace, name, value.clone(), options),
        Request::Delete { .. } => Operation::delete(&keyspace, name, options),
    }
}

fn write_options(key: &Key, request: &Request) -> WriteOptions {
    let (ttl, known) = match request {
        Request::Get => return WriteOptions::default(),
        Request::Put { ttl, known, .. } => (*ttl, known),
        Request::Delete { known } => (None, known),
    };
    let is_causal = key.keyspace == CAUSAL_KEYSPACE;
    let causal = is_causal.then(|| Causal { context: known.context.clone(), operation: None });
    WriteOptions { ttl, causal, ..WriteOptions::default() }
}

fn reply(request: &Request, result: Result<Answer, Error>) -> Reply {
    match result {
        Ok(Answer::Read(read)) => Reply::Read(read_outcome(&read), read.context),
        Ok(Answer::Written(written)) => {
            let stamp = Stamp(written.stamp.to_bytes());
            Reply::Written(WriteOutcome::Done { stamp, acks: written.acks }, written.context)
        }
        Err(error) if *request == Request::Get => {
            Reply::Read(ReadOutcome::Unanswered(error.to_string()), None)
        }
        Err(error) if error.surely_not_applied() => {
            Reply::Written(WriteOutcome::Failed(error.to_string()), None)
        }
        Err(error) => {
            let acks = error.detail().acks.unwrap_or(0);
            Reply::Written(WriteOutcome::Unknown { acks, why: error.to_string() }, None)
        }
    }
}

fn read_outcome(read: &Read) -> ReadOutcome {
    if read.values.is_empty() { ReadOutcome::Missing } else { ReadOutcome::Found(seen(read)) }
}

fn seen(read: &Read) -> Vec<Seen> {
    let seen = |found: &keystore_client::StampedValue| Seen {
        value: found.value.to_vec(),
        stamp: Stamp(found.stamp.to_bytes()),
    };
    read.values.iter().map(seen).collect()
}
