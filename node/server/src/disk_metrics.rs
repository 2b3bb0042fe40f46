//! `keystore_commitlog_*` and `keystore_storage_*`: what the disk side counts, in the form of Prometheus.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::storage::{Counters, Histogram, SECONDS_BOUNDS};

#[derive(Debug)]
pub struct DiskMetrics(pub Arc<Counters>);

impl Collector for DiskMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Counters {
            log_appended_bytes,
            log_batches,
            log_records,
            log_sync_seconds,
            log_segments,
            log_sequence,
            log_refused,
            checkpoints,
            checkpoint_seconds,
            records_applied,
            records_replayed,
            records_damaged,
            states_saved,
        } = &*self.0;
        let counters = [
            ("commitlog_batches", "Batches written to the commit log", None, log_batches),
            ("commitlog_records", "Records written to the commit log", None, log_records),
            ("commitlog_appended", "Written to the commit log", Some(&Unit::Bytes), log_appended_bytes),
            ("commitlog_refused", "Commits refused because the disk is full", None, log_refused),
            ("commitlog_replayed", "Records read from the commit log at the start", None, records_replayed),
            ("storage_checkpoints", "Checkpoints of the engine", None, checkpoints),
            ("storage_records_applied", "Records merged into the engine", None, records_applied),
            (
                "storage_records_damaged",
                "Records of the engine that failed their checksum",
                None,
                records_damaged,
            ),
            ("storage_states_saved", "Small durable files replaced", None, states_saved),
        ];
        for (name, help, unit, count) in counters {
            let counter = ConstCounter::new(count.get());
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)?;
        }
        let gauges = [
            ("commitlog_segments", "Segments of the commit log on disk", log_segments),
            ("commitlog_sequence", "The number of the last record written to the log", log_sequence),
        ];
        for (name, help, count) in gauges {
            let gauge = ConstGauge::new(i64::try_from(count.get()).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let histograms = [
            ("commitlog_sync", "Time of a sync of the commit log", log_sync_seconds),
            ("storage_checkpoint", "Time of a checkpoint of the engine", checkpoint_seconds),
        ];
        for (name, help, histogram) in histograms {
            encode_histogram(&mut encoder, name, help, histogram)?;
        }
        Ok(())
    }
}

fn encode_histogram(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    histogram: &Histogram,
) -> Result<(), fmt::Error> {
    // The library sums the buckets up by itself.
    let bounds = SECONDS_BOUNDS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(histogram.buckets()).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder
        .encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?
        .encode_histogram::<NoLabelSet>(histogram.sum_seconds(), count, &buckets, None)
}
