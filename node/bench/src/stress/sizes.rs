//! Small values beside large ones, one key that all want, and the shortest and longest keys.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::{KEYS, Shape, VALUE_BYTES, prepare, store};
use crate::compare::Operation;
use crate::measure::{Load, Sample, observe, value};
use crate::servers::{Programs, Servers};
use crate::statistics::ratio;
use crate::target::{Calls, Failed, Target as _, calls};
use crate::verdict::{Bound, Verdict};

const LARGE_BYTES: usize = 1 << 20;
/// Each puts a large value and gets it again, over and over,
const LARGE_CLIENTS: usize = 2;
/// or once in so long: twenty a second, all together.
const LARGE_EVERY: Duration = Duration::from_millis(100);
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
    /// Large values that were put and got meanwhile.
    pub(crate) large_per_second: f64,
    pub(crate) disturbance: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Circumstance {
    ManyKeys,
    BesideSomeLarge,
    BesideLarge,
    OneKey,
}

impl Circumstance {
    /// The first is what the others are held against.
    const ALL: [Self; 4] = [Self::ManyKeys, Self::BesideSomeLarge, Self::BesideLarge, Self::OneKey];

    /// How long each client of large values takes at least for one.
    fn large_every(self) -> Option<Duration> {
        match self {
            Self::ManyKeys | Self::OneKey => None,
            Self::BesideSomeLarge => Some(LARGE_EVERY),
            Self::BesideLarge => Some(Duration::ZERO),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ManyKeys => "many keys",
            Self::BesideSomeLarge => "beside some values of 1 MiB",
            Self::BesideLarge => "beside as many values of 1 MiB as two clients can",
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
        let mut p99_alone = None;
        for circumstance in Circumstance::ALL {
            let (sample, large) = measure_one(&servers, shape, operation, circumstance).await?;
            small.push(Small::of((&sample, large), operation, circumstance, p99_alone));
            p99_alone.get_or_insert(sample.latency_us(0.99));
        }
    }
    let mut keys = Vec::new();
    for bytes in KEY_LENGTHS {
        keys.push(KeyLength { bytes: *bytes, returned: returned(&servers, *bytes).await? });
    }
    Ok(Sizes { clients: shape.clients, small, keys })
}

impl Small {
    fn of(
        (sample, large): (&Sample, u64),
        operation: Operation,
        circumstance: Circumstance,
        p99_alone: Option<f64>,
    ) -> Self {
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
        let large_per_second = large as f64 / sample.used.time.as_secs_f64();
        Self {
            operation,
            circumstance,
            per_second,
            p50_us,
            p99_us,
            p99_ratio,
            failed,
            large_per_second,
            disturbance,
        }
    }
}

async fn measure_one(
    servers: &Servers,
    shape: &Shape,
    operation: Operation,
    circumstance: Circumstance,
) -> Result<(Sample, u64)> {
    let targets = calls(&servers.channels()?, operation.levels());
    let keys = if circumstance == Circumstance::OneKey { 1 } else { KEYS };
    let load = Load { keys, ..shape.load(operation, shape.clients) };
    // Connections of their own: a large message is not to wait in the way of small ones before it has even come.
    let large = calls(&servers.connections(LARGE_CLIENTS)?, operation.levels());
    let done = Cell::new(0);
    let meanwhile = async |ends| {
        if let Some(every) = circumstance.large_every() {
            let clients = large.iter().enumerate();
            let clients = clients.map(|client| large_values(client, (ends, every), &done));
            try_join_all(clients).await?;
        }
        Ok(())
    };
    Ok((observe(servers, &targets, &load, meanwhile).await?, done.get()))
}

async fn large_values(
    (client, target): (usize, &Calls),
    (ends, every): (Instant, Duration),
    done: &Cell<u64>,
) -> Result<(), Failed> {
    let (key, value) = (Bytes::from(format!("large/{client}")), value(LARGE_BYTES));
    loop {
        let next = Instant::now() + every;
        if next >= ends {
            return Ok(());
        }
        target.put(key.clone(), value.clone()).await?;
        if !target.get(key.clone()).await? {
            return Err(Failed::not_found());
        }
        done.set(done.get() + 1);
        sleep_until(next).await;
    }
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
