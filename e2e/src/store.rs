//! The store as the load generator sees it: three requests at quorum, with the outcomes of a history.
//!
//! Translates keystore-client's answers; decides nothing. A test may put a store of its own behind the same trait.

use std::future::Future;
use std::time::Duration;

use keystore_client::{
    Client, Consistency, Durability, Error, Read, ReadOptions, Routing, WriteOptions, Written,
};
use keystore_history::{Key, ReadOutcome, Seen, Stamp, WriteOutcome};

/// A request that has no answer by then counts as failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub trait Store: Clone + Send + Sync + 'static {
    fn get(&self, key: &Key) -> impl Future<Output = ReadOutcome> + Send;
    fn put(&self, key: &Key, value: &str) -> impl Future<Output = WriteOutcome> + Send;
    fn delete(&self, key: &Key) -> impl Future<Output = WriteOutcome> + Send;
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

    pub fn client(&self) -> &Client {
        &self.0
    }

    /// What the node that is asked has itself, where it owns the key: it asks nobody else.
    pub async fn get_at_one(&self, key: &Key) -> ReadOutcome {
        let options = ReadOptions { consistency: Some(Consistency::One), ..ReadOptions::default() };
        read_outcome(self.0.get(&key.keyspace, key.key.clone(), options).await)
    }
}

impl Store for ClientStore {
    async fn get(&self, key: &Key) -> ReadOutcome {
        read_outcome(self.0.get(&key.keyspace, key.key.clone(), ReadOptions::default()).await)
    }

    async fn put(&self, key: &Key, value: &str) -> WriteOutcome {
        let Key { keyspace, key } = key.clone();
        write_outcome(self.0.put(&keyspace, key, value.to_owned(), WriteOptions::default()).await)
    }

    async fn delete(&self, key: &Key) -> WriteOutcome {
        write_outcome(self.0.delete(&key.keyspace, key.key.clone(), WriteOptions::default()).await)
    }
}

fn read_outcome(result: Result<Read, Error>) -> ReadOutcome {
    match result {
        Ok(read) if read.values.is_empty() => ReadOutcome::Missing,
        Ok(read) => {
            let seen = |found: keystore_client::StampedValue| Seen {
                value: found.value.to_vec(),
                stamp: Stamp(found.stamp.to_bytes()),
            };
            ReadOutcome::Found(read.values.into_iter().map(seen).collect())
        }
        Err(error) => ReadOutcome::Unanswered(error.to_string()),
    }
}

fn write_outcome(result: Result<Written, Error>) -> WriteOutcome {
    match result {
        Ok(written) => WriteOutcome::Done { stamp: Stamp(written.stamp.to_bytes()), acks: written.acks },
        Err(error) if error.surely_not_applied() => WriteOutcome::Failed(error.to_string()),
        Err(error) => {
            WriteOutcome::Unknown { acks: error.detail().acks.unwrap_or(0), why: error.to_string() }
        }
    }
}
