//! The client of the KeyStore service: requests in, typed outcomes out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::VALUE_BYTES_MAX;
use keystore_core::stamp::Stamp;
use keystore_proto::client::durability_to_wire;
use keystore_proto::v1;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Detail, Error, Reason};
use crate::execute::Call;
use crate::options::{Read, ReadOptions, Routing, StampedValue, TIMEOUT_DEFAULT, WriteOptions, Written};
use crate::router::Router;
use crate::routes::Routes;
use crate::trail::Rounds;
use crate::verdict::Kind;

const GET: &str = "/keystore.v1.KeyStore/Get";
const PUT: &str = "/keystore.v1.KeyStore/Put";
const DELETE: &str = "/keystore.v1.KeyStore/Delete";

/// A client of one cluster. Clones share connections; the last one to be dropped closes them.
#[derive(Clone)]
pub struct Client {
    router: Arc<Router>,
    defaults: Defaults,
    /// Keeps the routing table fresh.
    _refresher: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Defaults {
    timeout: Option<Duration>,
    consistency: Option<Consistency>,
    durability: Option<Durability>,
}

/// What a client is made from.
#[derive(Debug, Clone, Default)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    mode: Routing,
    defaults: Defaults,
}

impl ClientBuilder {
    /// host:port of any nodes, or of a Service in front of them.
    pub fn endpoints<I: IntoIterator<Item = impl Into<String>>>(mut self, endpoints: I) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    pub fn mode(mut self, mode: Routing) -> Self {
        self.mode = mode;
        self
    }

    /// The deadline of requests that name none; 5 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.defaults.timeout = Some(timeout);
        self
    }

    /// For requests that name none; the cluster's default by default.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.defaults.consistency = Some(consistency);
        self
    }

    /// For writes that name none; the cluster's default by default.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.defaults.durability = Some(durability);
        self
    }

    /// Connects to one endpoint, whichever answers, and in direct mode learns the routes from it. Fails when none
    /// can be connected to, or the cluster does not serve yet: each endpoint is asked once.
    pub async fn connect(self) -> Result<Client, Error> {
        let timeout = self.defaults.timeout.unwrap_or(TIMEOUT_DEFAULT);
        let router = Router::connect(&self.endpoints, self.mode, timeout).await?;
        let refresher = match self.mode {
            Routing::Direct => {
                let task = tokio::spawn(router.clone().refresh_routes());
                Some(Arc::new(AbortOnDropHandle::new(task)))
            }
            Routing::Proxy => None,
        };
        Ok(Client { router, defaults: self.defaults, _refresher: refresher })
    }
}

impl Client {
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub async fn get(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        options: ReadOptions,
    ) -> Result<Read, Error> {
        let key = key.into();
        let record_key = record_key(keyspace, &key)?;
        let request = v1::GetRequest {
            keyspace: keyspace.to_owned(),
            key,
            consistency: self.consistency(options.consistency),
        };
        let call = self.call(Kind::Read, &record_key, options.timeout);
        let response: v1::GetResponse = self.router.execute(GET, &request, call).await?;
        let values = response.values.into_iter().map(|value| {
            Ok(StampedValue {
                stamp: stamp(&value.stamp).ok_or_else(|| Error::Failed(no_stamp()))?,
                value: value.value,
            })
        });
        Ok(Read { values: values.collect::<Result<_, Error>>()? })
    }

    pub async fn put(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let (key, value) = (key.into(), value.into());
        let record_key = record_key(keyspace, &key)?;
        if value.len() > VALUE_BYTES_MAX {
            let problem =
                format!("a value has at most {VALUE_BYTES_MAX} bytes, this one has {}", value.len());
            return Err(Error::BadRequest(Detail::new(Reason::INVALID_ARGUMENT, problem)));
        }
        let request = v1::PutRequest {
            keyspace: keyspace.to_owned(),
            key,
            value,
            consistency: self.consistency(options.consistency),
            durability: self.durability(options.durability),
        };
        let call = self.call(Kind::Write, &record_key, options.timeout);
        let response: v1::PutResponse = self.router.execute(PUT, &request, call).await?;
        written(&response.stamp, response.acks, response.durability())
    }

    pub async fn delete(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let key = key.into();
        let record_key = record_key(keyspace, &key)?;
        let request = v1::DeleteRequest {
            keyspace: keyspace.to_owned(),
            key,
            consistency: self.consistency(options.consistency),
            durability: self.durability(options.durability),
        };
        let call = self.call(Kind::Write, &record_key, options.timeout);
        let response: v1::DeleteResponse = self.router.execute(DELETE, &request, call).await?;
        written(&response.stamp, response.acks, response.durability())
    }

    /// Asks the cluster for the map of partitions to owners.
    pub async fn routes(&self) -> Result<Routes, Error> {
        self.router.fetch_routes(self.defaults.timeout.unwrap_or(TIMEOUT_DEFAULT)).await
    }

    fn call<'a>(&self, kind: Kind, key: &'a RecordKey, timeout: Option<Duration>) -> Call<'a> {
        Call {
            kind,
            key: Some(key),
            rounds: Rounds::Many,
            timeout: timeout.or(self.defaults.timeout).unwrap_or(TIMEOUT_DEFAULT),
        }
    }

    fn consistency(&self, requested: Option<Consistency>) -> i32 {
        let wire = match requested.or(self.defaults.consistency) {
            None => v1::Consistency::Unspecified,
            Some(Consistency::One) => v1::Consistency::One,
            Some(Consistency::Quorum) => v1::Consistency::Quorum,
            Some(Consistency::All) => v1::Consistency::All,
        };
        wire.into()
    }

    fn durability(&self, requested: Option<Durability>) -> i32 {
        let wire = match requested.or(self.defaults.durability) {
            None => v1::Durability::Unspecified,
            Some(durability) => durability_to_wire(durability),
        };
        wire.into()
    }
}

fn record_key(keyspace: &str, key: &Bytes) -> Result<RecordKey, Error> {
    RecordKey::new(keyspace, key)
        .map_err(|error| Error::BadRequest(Detail::new(Reason::INVALID_ARGUMENT, error.to_string())))
}

fn written(stamp_bytes: &Bytes, acks: u32, durability: v1::Durability) -> Result<Written, Error> {
    Ok(Written {
        stamp: stamp(stamp_bytes).ok_or_else(|| Error::Unknown(no_stamp()))?,
        acks,
        durability: match durability {
            v1::Durability::Synced => Durability::Synced,
            // Promise no more than was said.
            v1::Durability::Periodic | v1::Durability::Unspecified => Durability::Periodic,
        },
    })
}

fn stamp(bytes: &Bytes) -> Option<Stamp> {
    Stamp::from_slice(bytes)
}

fn no_stamp() -> Detail {
    Detail::new(Reason::BAD_ANSWER, "the answer has no valid stamp")
}
