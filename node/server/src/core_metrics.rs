//! What the core counts, and what it keeps for others: `keystore_hints_*` and the paths that requests take rarely.

use std::fmt;

use keystore_core::node::{Counters, HintStatus};
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
        for (name, help, count) in counters(view.counters) {
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

fn counters(counters: Counters) -> [(&'static str, &'static str, u64); 19] {
    let Counters {
        write_backs,
        read_repairs,
        stamped_anew,
        parked,
        speculative_reads,
        expired_marks,
        minted,
        operations_met_again,
        sibling_caps,
        scan_cuts,
        generations_heard,
        hints_stored,
        hints_handed_over,
        hints_overflowed,
        hints_expired,
        synced_anew,
        generations_raised,
        doubts,
        heals,
    } = counters;
    [
        ("read_write_backs", "Reads whose result went to a quorum before the answer", write_backs),
        ("read_repairs", "Records sent to replicas that a read found behind", read_repairs),
        ("read_speculations", "Reads that asked one replica more since one was slow", speculative_reads),
        ("read_expired_marks", "Reads that found something expired and wrote that down", expired_marks),
        ("write_restamps", "Stamps drawn again since a higher one stood in the way", stamped_anew),
        ("write_parked", "Writes that waited until a stamp might be issued", parked),
        ("write_synced_anew", "Repairs that waited until what is above them was synced", synced_anew),
        ("siblings_minted", "Writes that this replica has put beside others", minted),
        ("siblings_met_again", "Of these, retries of one that was there already", operations_met_again),
        ("siblings_refused", "Writes refused since a key had too many siblings", sibling_caps),
        ("scan_cuts", "Pages that this replica has cut", scan_cuts),
        (
            "generations_heard",
            "News of a peer's generation that came with another's answer",
            generations_heard,
        ),
        ("generations_raised", "Generations that this process has raised", generations_raised),
        ("hints_stored", "Hints taken for nodes that may have missed a write", hints_stored),
        ("hints_handed_over", "Hints whose target has said that it has what it missed", hints_handed_over),
        ("hints_overflowed", "Hints that were not kept: too many, or no space on disk", hints_overflowed),
        ("hints_expired", "Hints that were dropped since they were too old", hints_expired),
        ("doubts", "Keys whose record turned out to be damaged", doubts),
        ("heals", "Of these, keys that were healed from other replicas", heals),
    ]
}
