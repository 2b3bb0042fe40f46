//! Small values beside large ones, one key that all want, and the shortest and longest keys.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{KEYS, Shape, VALUE_BYTES, prepare, store};
use crate::compare::Operation;
use crate::measure::{Load, Sample, observe, value};
use crate::servers::{Programs, Servers};
use crate::statistics::ratio;
use crate::target::{Calls, Failed, Target as _, calls};
use crate::verdict::{Bound, Verdict};

const LARGE_BYTES: usize = 1 << 20;
/// Each puts a large value and gets it again, over and over.
const LARGE_CLIENTS: usize = 2;
const KEY_LENGTHS: &[usize] = &[1, 1_024];

/// A load of small values, in one of several circumstances.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Small {
    pub(crate) operation: Operation,
    pub(crate) circumstance: Circumstance,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// To that of many keys alone; absent of that.
    pub(crate) p99_ratio: Option<f64>,
    pub(crate) failed: u64,
    pub(crate) disturbance: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Circumstance {
    ManyKeys,
    BesideLarge,
    OneKey,
}

impl Circumstance {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ManyKeys => "many keys",
            Self::BesideLarge => "beside values of 1 MiB",
            Self::OneKey => "all on one key",
        }
    }
}

/// A key of such a length was put at one node, and got at each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyLength {
    pub(crate) bytes: usize,
    /// The share of gets that returned the value.
    pub(crate) returned: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sizes {
    pub(crate) clients: usize,
    pub(crate) small: Vec<Small>,
    pub(crate) keys: Vec<KeyLength>,
}

impl Sizes {
    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        let failed = self.small.iter().map(|small| {
            let what = format!("{}, {}: failed requests", small.operation.name(), small.circumstance.name());
            Verdict::new(what, Some(small.failed as f64), Bound::AtMost(0.0)).under(small.disturbance)
        });
        let keys = self.keys.iter().map(|key| {
            let what = format!("keys of length {}: share of the nodes that return the value", key.bytes);
            Verdict::new(what, Some(key.returned), Bound::AtLeast(1.0))
        });
        failed.chain(keys).collect()
    }
}

pub(super) async fn run(programs: &Programs, shape: &Shape) -> Result<Sizes> {
    let mut servers = store(programs, &shape.engine)?;
    prepare(&mut servers).await?;
    let mut small: Vec<Small> = Vec::new();
    for operation in [Operation::DurablePut, Operation::Get] {
        let alone = measure_one(&servers, shape, operation, Circumstance::ManyKeys).await?;
        let p99_alone = alone.latency_us(0.99);
        small.push(Small::of(&alone, operation, Circumstance::ManyKeys, None));
        for circumstance in [Circumstance::BesideLarge, Circumstance::OneKey] {
            let sample = measure_one(&servers, shape, operation, circumstance).await?;
            small.push(Small::of(&sample, operation, circumstance, Some(p99_alone)));
        }
    }
    let mut keys = Vec::new();
    for bytes in KEY_LENGTHS {
        keys.push(KeyLength { bytes: *bytes, returned: returned(&servers, *bytes).await? });
    }
    Ok(Sizes { clients: shape.clients, small, keys })
}

impl Small {
    fn of(sample: &Sample, operation: Operation, circumstance: Circumstance, p99_alone: Option<f64>) -> Self {
        let p99_us = sample.latency_us(0.99);
        let p99_ratio = p99_alone.and_then(|alone| ratio(p99_us, alone));
        let (per_second, p50_us) = (sample.per_second(), sample.latency_us(0.5));
        let (failed, disturbance) = (sample.failed, sample.disturbance());
        eprintln!(
            "  {}, {}: {per_second:.0}/s, p99 {:.2} ms",
            operation.name(),
            circumstance.name(),
            p99_us / 1e3
        );
        Self { operation, circumstance, per_second, p50_us, p99_us, p99_ratio, failed, disturbance }
    }
}

async fn measure_one(
    servers: &Servers,
    shape: &Shape,
    operation: Operation,
    circumstance: Circumstance,
) -> Result<Sample> {
    let targets = calls(&servers.channels()?, operation.levels());
    let load = Load {
        kind: operation.kind(),
        clients: shape.clients,
        value_bytes: VALUE_BYTES,
        keys: if circumstance == Circumstance::OneKey { 1 } else { KEYS },
        time: Duration::from_secs(shape.seconds),
    };
    // Connections of their own: a large message is not to wait in the way of small ones before it has even come.
    let large = calls(&servers.connections(LARGE_CLIENTS)?, operation.levels());
    let meanwhile = async |ends| {
        if circumstance == Circumstance::BesideLarge {
            let clients = large.iter().enumerate().map(|(client, target)| large_values(client, target, ends));
            try_join_all(clients).await?;
        }
        Ok(())
    };
    observe(servers, &targets, &load, meanwhile).await
}

async fn large_values(client: usize, target: &Calls, ends: Instant) -> Result<(), Failed> {
    let (key, value) = (Bytes::from(format!("large/{client}")), value(LARGE_BYTES));
    while Instant::now() < ends {
        target.put(key.clone(), value.clone()).await?;
        if !target.get(key.clone()).await? {
            return Err(Failed::not_found());
        }
    }
    Ok(())
}

async fn returned(servers: &Servers, key_bytes: usize) -> Result<f64> {
    let (key, value) = (Bytes::from(vec![b'k'; key_bytes]), value(VALUE_BYTES));
    let channels = servers.channels()?;
    let first = channels.first().context("there are no nodes")?;
    let put = v1::PutRequest { key: key.clone(), value: value.clone(), ..v1::PutRequest::default() };
    KeyStoreClient::new(first.clone()).put(put).await?;
    let mut returned = 0;
    for channel in &channels {
        let get = v1::GetRequest { key: key.clone(), ..v1::GetRequest::default() };
        let got = KeyStoreClient::new(channel.clone()).get(get).await?.into_inner();
        returned += usize::from(got.values.first().is_some_and(|got| got.value == value));
    }
    Ok(returned as f64 / channels.len() as f64)
}
