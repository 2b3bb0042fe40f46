//! Metrics that are read when asked for: the node's view, its links, gossip and disk.

use std::fmt;
use std::sync::Arc;

use keystore_core::node::NodeState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::about::About;
use crate::disk::DiskUse;
use crate::peers::Links;

#[derive(Debug)]
pub struct Gauges {
    pub about: About,
    pub links: Arc<Links>,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let view = self.about.core.view();
        let epoch = view.layout.as_ref().map_or(0, |layout| layout.epoch.0);
        let is_serving = view.state == NodeState::Serving;
        let mut gauge = |name, help, unit: Option<&Unit>, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge("epoch", "The epoch of the layout in force, 0 before init", None, epoch)?;
        gauge(
            "ready",
            "1 while this node serves requests",
            None,
            self.about.core.obstacle().is_none().into(),
        )?;
        gauge("serving", "1 once all members have accepted the layout", None, is_serving.into())?;
        gauge(
            "partitions_owned",
            "Partitions of which this node is a replica",
            None,
            view.partitions_owned as u64,
        )?;
        gauge(
            "partitions_available",
            "Partitions of which this node reaches a write quorum",
            None,
            view.partitions_available as u64,
        )?;
        gauge("requests_under_way", "Client requests under way here", None, view.requests_under_way as u64)?;
        gauge("writes_under_way", "Replicated writes under way here", None, view.writes_under_way as u64)?;
        gauge(
            "doubted_keys",
            "Keys of which a record was damaged and has not been healed yet",
            None,
            view.doubted_keys as u64,
        )?;
        gauge(
            "doubted_partitions",
            "Partitions of which something cannot be read, so that this node counts for nothing there",
            None,
            view.doubted_wholly.len() as u64,
        )?;
        gauge("peer_links", "Links to other members that are up", None, view.connected.len() as u64)?;
        gauge(
            "peer_links_open",
            "Streams to other nodes, accepted or not yet",
            None,
            self.links.count() as u64,
        )?;
        let gossiped = self.about.gossiped.borrow().clone();
        let alive = gossiped.values().filter(|known| known.alive).count();
        gauge("gossip_nodes", "Other nodes that gossip knows", None, gossiped.len() as u64)?;
        gauge("gossip_nodes_alive", "Other nodes that gossip believes alive", None, alive as u64)?;
        self.encode_disk(encoder)
    }
}

impl Gauges {
    fn encode_disk(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let DiskUse { space, engine, set_aside_bytes, reserve_bytes, full } = *self.about.disk.borrow();
        let bytes = [
            (
                "storage_disk_size",
                "Size of the data directory's file system, without what is kept for root",
                space.total,
            ),
            ("storage_disk_available", "Free to this node on that file system", space.available),
            ("storage_disk_reserve", "Of that, what the engine's next flush will take", reserve_bytes),
            (
                "storage_set_aside",
                "Kept of a node that this data directory is not any more; it goes when it is in the way",
                set_aside_bytes,
            ),
            ("storage_engine_disk", "Size of the engine's files", engine.disk_bytes),
            (
                "storage_engine_memory",
                "Memory for records that an engine keeps there for as long as they are stored",
                engine.memory_bytes,
            ),
        ];
        for (name, help, value) in bytes {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(
                name,
                help,
                Some(&Unit::Bytes),
                gauge.metric_type(),
            )?)?;
        }
        let gauge = ConstGauge::new(i64::from(full));
        let help = "1 while client writes are refused for want of space";
        gauge.encode(encoder.encode_descriptor("storage_disk_full", help, None, gauge.metric_type())?)
    }
}
