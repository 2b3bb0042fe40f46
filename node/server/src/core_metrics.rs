//! What the core counts, and what it keeps for others: `keystore_hints_*` and the paths that requests take rarely.

use std::fmt;

use keystore_core::node::HintStatus;
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
        for (name, help, count) in view.counters.described() {
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
        ];
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
