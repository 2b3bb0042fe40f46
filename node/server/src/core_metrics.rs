//! What the core counts, keeps for others (`keystore_hints_*`) and takes over (`keystore_transfer_*`), and the paths that
//! requests take rarely.

use std::fmt;

use keystore_core::node::HintStatus;
use keystore_core::transfer::TransferStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::handle::CoreHandle;

#[derive(Debug)]
pub struct CoreMetrics(pub CoreHandle);

impl Collector for CoreMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let view = self.0.view();
        let TransferStatus { partitions, done, records, bytes: moved, records_held, remaining_ms } =
            &view.transfer;
        let transferred = [
            ("transfer_records", "Records taken over from other nodes while data moved", *records),
            ("transfer_bytes", "Keys and values of these, about", *moved),
            (
                "transfer_records_held",
                "Records that did not have to be sent, since they were here",
                *records_held,
            ),
        ];
        for (name, help, count) in view.counters.described().chain(transferred) {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let HintStatus { pending, bytes, targets: _, partitions_wanted_by_repair } = &view.hints;
        let gauges = [
            ("hints_pending", "Hints kept here for other nodes", None, pending),
            ("hints", "What these hints take up in memory", Some(&Unit::Bytes), bytes),
            (
                "repair_partitions_wanted",
                "Partitions of which a hint was dropped since this process started",
                None,
                partitions_wanted_by_repair,
            ),
            ("transfer_partitions", "Partitions that this node has to take over", None, partitions),
            ("transfer_partitions_done", "Of these, partitions that it has taken over", None, done),
        ];
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        let seconds = remaining_ms.unwrap_or_default() as f64 / 1e3;
        let gauge = ConstGauge::new(seconds);
        let help = "How long what is left to take over will last at the pace so far, 0 if nobody can tell";
        gauge.encode(encoder.encode_descriptor(
            "transfer_remaining",
            help,
            Some(&Unit::Seconds),
            gauge.metric_type(),
        )?)
    }
}
