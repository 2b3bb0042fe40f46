//! The store as the load generator sees it: three requests at quorum, with the outcomes of a history.
//!
//! Translates keystore-client's answers; decides nothing. A test may put a store of its own behind the same trait.

use std::future::Future;
use std::time::Duration;

use keystore_client::{
    Client, Consistency, DEFAULT_KEYSPACE, Durability, Error, Read, ReadOptions, Routing, WriteOptions,
    Written,
};

use crate::history::{ReadOutcome, Stamp, WriteOutcome};

/// A request that has no answer by then counts as failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub trait Store: Clone + Send + Sync + 'static {
    fn get(&self, key: &str) -> impl Future<Output = ReadOutcome> + Send;
    fn put(&self, key: &str, value: &str) -> impl Future<Output = WriteOutcome> + Send;
    fn delete(&self, key: &str) -> impl Future<Output = WriteOutcome> + Send;
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
}

impl Store for ClientStore {
    async fn get(&self, key: &str) -> ReadOutcome {
        read_outcome(self.0.get(DEFAULT_KEYSPACE, key.to_owned(), ReadOptions::default()).await)
    }

    async fn put(&self, key: &str, value: &str) -> WriteOutcome {
        let (key, value) = (key.to_owned(), value.to_owned());
        write_outcome(self.0.put(DEFAULT_KEYSPACE, key, value, WriteOptions::default()).await)
    }

    async fn delete(&self, key: &str) -> WriteOutcome {
        write_outcome(self.0.delete(DEFAULT_KEYSPACE, key.to_owned(), WriteOptions::default()).await)
    }
}

fn read_outcome(result: Result<Read, Error>) -> ReadOutcome {
    match result {
        Ok(read) => read.value().map_or(ReadOutcome::Missing, |found| ReadOutcome::Found {
            value: String::from_utf8_lossy(&found.value).into_owned(),
            stamp: Stamp(found.stamp.to_bytes()),
        }),
        Err(error) => ReadOutcome::Error(error.to_string()),
    }
}

fn write_outcome(result: Result<Written, Error>) -> WriteOutcome {
    match result {
        Ok(written) => WriteOutcome::Done(Stamp(written.stamp.to_bytes())),
        Err(error) if error.surely_not_applied() => WriteOutcome::Failed(error.to_string()),
        Err(error) => WriteOutcome::Unknown(error.to_string()),
    }
}
