//! What was measured, as people and programs read it: the median of the rounds, and the median of the ratios that the
//! store had to etcd in each.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::compare::{Cell, DISTURBANCE_MAX, System};
use crate::measure::Sample;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    cores: usize,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    operation: &'static str,
    clients: usize,
    value_bytes: usize,
    system: System,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    server_cpu_us: f64,
    /// To the disks of all servers.
    written_bytes_per_operation: f64,
    /// Of all servers together.
    resident_bytes: f64,
    failed: u64,
    /// Of the worst round: what others used, as a share of one core.
    disturbance: f64,
    /// To etcd; absent of etcd itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratios: Option<Ratios>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ratios {
    per_second: f64,
    p99: f64,
    server_cpu: f64,
}

impl Report {
    pub(crate) fn of(cells: &[Cell]) -> Self {
        let systems = [System::Etcd, System::Calls, System::Stream];
        let rows = cells.iter().flat_map(|cell| systems.map(|system| row(cell, system)));
        Self { cores: std::thread::available_parallelism().map_or(0, usize::from), rows: rows.collect() }
    }

    pub(crate) fn table(&self) -> String {
        let mut out = format!(
            "{:<12} {:>7} {:>7}  {:<7} {:>9} {:>9} {:>9} {:>9} {:>8}   {}\n",
            "OPERATION",
            "CLIENTS",
            "BYTES",
            "SYSTEM",
            "PER S",
            "P50 MS",
            "P99 MS",
            "P999 MS",
            "CPU US",
            "TO ETCD: PER S, P99, CPU"
        );
        for row in &self.rows {
            let system = format!("{:?}", row.system).to_lowercase();
            let ratios = row.ratios.as_ref().map(|Ratios { per_second, p99, server_cpu }| {
                format!("{per_second:>5.2}x {p99:>5.2}x {server_cpu:>5.2}x")
            });
            let [p50, p99, p999] = [row.p50_us, row.p99_us, row.p999_us].map(|us| us / 1e3);
            out += &format!(
                "{:<12} {:>7} {:>7}  {system:<7} {:>9.0} {p50:>9.2} {p99:>9.2} {p999:>9.2} {:>8.0}   {}\n",
                row.operation,
                row.clients,
                row.value_bytes,
                row.per_second,
                row.server_cpu_us,
                ratios.unwrap_or_default(),
            );
        }
        out
    }

    /// Figures that something else has disturbed are no figures.
    pub(crate) fn check(&self) -> Result<()> {
        let worst = self.rows.iter().map(|row| row.disturbance).fold(0.0, f64::max);
        ensure!(
            worst <= DISTURBANCE_MAX,
            "these figures do not count: others used {worst:.2} of a core at times, and {DISTURBANCE_MAX} is the most"
        );
        Ok(())
    }
}

fn row(cell: &Cell, system: System) -> Row {
    let of = |system: System| {
        let rounds = cell.rounds.iter().flatten();
        rounds.filter(move |(measured, _)| *measured == system).map(|(_, sample)| sample)
    };
    let figure = |figure: fn(&Sample) -> f64| median(of(system).map(figure).collect());
    let ratio = |figure: fn(&Sample) -> f64| {
        let pairs = of(system).zip(of(System::Etcd));
        median(pairs.map(|(ours, theirs)| figure(ours) / figure(theirs)).collect())
    };
    let ratios = || Ratios {
        per_second: ratio(Sample::per_second),
        p99: ratio(|sample| sample.latency_us(0.99)),
        server_cpu: ratio(Sample::cpu_us),
    };
    Row {
        operation: cell.operation.name(),
        clients: cell.clients,
        value_bytes: cell.value_bytes,
        system,
        per_second: figure(Sample::per_second),
        p50_us: figure(|sample| sample.latency_us(0.5)),
        p99_us: figure(|sample| sample.latency_us(0.99)),
        p999_us: figure(|sample| sample.latency_us(0.999)),
        server_cpu_us: figure(Sample::cpu_us),
        written_bytes_per_operation: figure(Sample::written_per_operation),
        resident_bytes: figure(|sample| sample.resident as f64),
        failed: of(system).map(|sample| sample.failed).sum(),
        disturbance: of(system).map(Sample::disturbance).fold(0.0, f64::max),
        ratios: (system != System::Etcd).then(ratios),
    }
}

/// Of an even number, the lower one of the two in the middle; 0 of none.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_what_half_of_the_rounds_stay_below() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.0);
        assert_eq!(median(vec![7.0]), 7.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
