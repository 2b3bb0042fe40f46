//! The two calls of etcd that are measured, over the same gRPC client as the store's.
//!
//! The messages are those of etcd's API, version 3.6 (`etcdserverpb.KV`), with the fields that are used.

use bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::target::{Failed, Read, Target};

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

/// A connection to one member.
#[derive(Clone)]
pub(crate) struct Etcd {
    grpc: Grpc<Channel>,
    read: Read,
}

impl Etcd {
    pub(crate) fn new(channel: Channel, read: Read) -> Self {
        Self { grpc: Grpc::new(channel), read }
    }

    async fn call<A, B>(&self, path: &'static str, request: A) -> Result<B, Status>
    where
        A: prost::Message + 'static,
        B: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<A, B>::default();
        let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?;
        Ok(answer.into_inner())
    }
}

impl Target for Etcd {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failed> {
        let PutResponse {} = self.call("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        Ok(())
    }

    async fn get(&self, key: Bytes) -> Result<bool, Failed> {
        let request = RangeRequest { key, serializable: self.read == Read::One };
        let RangeResponse { kvs } = self.call("/etcdserverpb.KV/Range", request).await?;
        Ok(kvs.first().is_some_and(|found| !found.value.is_empty()))
    }
}

/// One for each of these connections.
pub(crate) fn etcds(channels: &[Channel], read: Read) -> Vec<Etcd> {
    channels.iter().map(|channel| Etcd::new(channel.clone(), read)).collect()
}
