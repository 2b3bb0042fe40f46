//! Scans of everything, over and over, by one client at each of so many nodes.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use futures::future::try_join_all;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::meter::Meter;
use crate::servers::{NODES, Servers};
use crate::target::Read;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Scan {
    /// How many replicas agree: `one` or `quorum`.
    pub(crate) consistency: String,
    /// At once, each at a node of its own.
    pub(crate) scans: usize,
    pub(crate) records_per_second: f64,
    /// Of keys and values.
    pub(crate) bytes_per_second: f64,
    pub(crate) server_cpu_us_per_record: f64,
    pub(crate) disturbance: f64,
}

/// What scans have returned.
#[derive(Debug, Clone, Copy, Default)]
struct Returned {
    records: u64,
    bytes: u64,
}

/// Fails if a scan does not return each of the records.
pub(crate) async fn measure(servers: &Servers, records: u32, seconds: u64) -> Result<Vec<Scan>> {
    let mut measured = Vec::new();
    for (read, consistency) in [(Read::Quorum, "quorum"), (Read::One, "one")] {
        for scans in [1, NODES] {
            let meter = Meter::start(servers)?;
            let ends = Instant::now() + Duration::from_secs(seconds);
            let channels = servers.connections(scans)?;
            let each = channels.into_iter().map(|channel| repeat(channel, read, u64::from(records), ends));
            let returned = try_join_all(each).await?;
            let used = meter.read(servers)?;
            let all: Returned = returned.into_iter().fold(Returned::default(), |all, one| Returned {
                records: all.records + one.records,
                bytes: all.bytes + one.bytes,
            });
            let scan = Scan {
                consistency: consistency.to_owned(),
                scans,
                records_per_second: all.records as f64 / used.time.as_secs_f64(),
                bytes_per_second: all.bytes as f64 / used.time.as_secs_f64(),
                server_cpu_us_per_record: used.cpu.as_secs_f64() * 1e6 / all.records as f64,
                disturbance: used.disturbance(),
            };
            eprintln!("  {scans} scans, {consistency}: {:.0} records/s", scan.records_per_second);
            measured.push(scan);
        }
    }
    Ok(measured)
}

/// At least once.
async fn repeat(channel: Channel, read: Read, records: u64, ends: Instant) -> Result<Returned> {
    let mut all = Returned::default();
    loop {
        let Returned { records: found, bytes } = scan(channel.clone(), read).await?;
        ensure!(found == records, "a scan has returned {found} of {records} records");
        all.records += found;
        all.bytes += bytes;
        if Instant::now() >= ends {
            return Ok(all);
        }
    }
}

async fn scan(channel: Channel, read: Read) -> Result<Returned> {
    let consistency = match read {
        Read::Quorum => v1::Consistency::Quorum,
        Read::One => v1::Consistency::One,
    };
    let request = v1::ScanRequest {
        prefix: "bench/".into(),
        consistency: consistency.into(),
        ..v1::ScanRequest::default()
    };
    let mut pages = KeyStoreClient::new(channel).scan(request).await?.into_inner();
    let mut returned = Returned::default();
    while let Some(page) = pages.next().await {
        for v1::ScanEntry { key, values, .. } in page?.entries {
            returned.records += 1;
            returned.bytes +=
                (key.len() + values.iter().map(|value| value.value.len()).sum::<usize>()) as u64;
        }
    }
    Ok(returned)
}
