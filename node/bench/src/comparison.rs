//! What the comparison has shown: the median of the rounds, and the median of the ratios that the store had to etcd in
//! each; and the budgets that it keeps or does not. Pure.

use serde::{Deserialize, Serialize};

use crate::compare::{Cell, Operation, System};
use crate::measure::Sample;
use crate::statistics::{median, ratio};
use crate::table::{Table, marked, number, times};
use crate::verdict::{Bound, Verdict};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Comparison {
    /// What etcd says of its version.
    pub(crate) etcd: String,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) operation: Operation,
    pub(crate) clients: usize,
    pub(crate) value_bytes: usize,
    pub(crate) system: System,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) server_cpu_us: f64,
    /// To the disks of all servers.
    pub(crate) written_bytes_per_operation: f64,
    /// Of all servers together.
    pub(crate) resident_bytes: f64,
    pub(crate) failed: u64,
    /// Of the worst round: what others used, as a share of one core.
    pub(crate) disturbance: f64,
    /// To etcd; absent of etcd itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratios: Option<Ratios>,
}

/// `None` where etcd has done nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ratios {
    pub(crate) per_second: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) server_cpu: Option<f64>,
}

/// What one budget bounds.
struct Budget {
    operation: Operation,
    systems: &'static [System],
    what: &'static str,
    of: fn(&Ratios) -> Option<f64>,
    bound: Bound,
}

const STORE: &[System] = &[System::Calls, System::Stream];

/// Of the clients and values that budgets are about.
const BUDGET_CLIENTS: usize = 64;
pub(crate) const BUDGET_VALUE_BYTES: usize = 100;

const BUDGETS: &[Budget] = &[
    Budget {
        operation: Operation::DurablePut,
        systems: &[System::Calls],
        what: "server CPU",
        of: |ratios| ratios.server_cpu,
        bound: Bound::AtMost(0.40),
    },
    Budget {
        operation: Operation::DurablePut,
        systems: &[System::Stream],
        what: "server CPU",
        of: |ratios| ratios.server_cpu,
        bound: Bound::AtMost(0.25),
    },
    Budget {
        operation: Operation::DurablePut,
        systems: STORE,
        what: "throughput",
        of: |ratios| ratios.per_second,
        bound: Bound::AtLeast(2.5),
    },
    Budget {
        operation: Operation::DurablePut,
        systems: STORE,
        what: "p99",
        of: |ratios| ratios.p99,
        bound: Bound::AtMost(0.45),
    },
    Budget {
        operation: Operation::Get,
        systems: STORE,
        what: "server CPU",
        of: |ratios| ratios.server_cpu,
        bound: Bound::AtMost(0.5),
    },
];

/// A budget, and how it stood with each number of clients.
pub(crate) struct Kept {
    pub(crate) what: String,
    pub(crate) bound: Bound,
    pub(crate) by_clients: Vec<(usize, Verdict)>,
}

impl Comparison {
    pub(crate) fn of(cells: &[Cell], etcd: String) -> Self {
        let systems = [System::Etcd, System::Calls, System::Stream];
        let rows = cells.iter().flat_map(|cell| systems.map(|system| row(cell, system)));
        Self { etcd, rows: rows.collect() }
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new(
            "All that was compared; ratios are to etcd",
            &[
                "operation",
                "clients",
                "bytes",
                "system",
                "per s",
                "p50 ms",
                "p99 ms",
                "p99.9 ms",
                "CPU µs",
                "written B",
                "× per s",
                "× p99",
                "× CPU",
            ],
        );
        for row in &self.rows {
            let ratio = |of: fn(&Ratios) -> Option<f64>| {
                row.ratios.as_ref().map_or_else(String::new, |ratios| times(of(ratios)))
            };
            table.row([
                marked(row.operation.name(), row.disturbance),
                row.clients.to_string(),
                row.value_bytes.to_string(),
                row.system.name().to_owned(),
                number(row.per_second, 0),
                number(row.p50_us / 1e3, 2),
                number(row.p99_us / 1e3, 2),
                number(row.p999_us / 1e3, 2),
                number(row.server_cpu_us, 0),
                number(row.written_bytes_per_operation, 0),
                ratio(|ratios| ratios.per_second),
                ratio(|ratios| ratios.p99),
                ratio(|ratios| ratios.server_cpu),
            ]);
        }
        table
    }

    /// A budget for each system that it is for, of those that were measured.
    pub(crate) fn budgets(&self) -> Vec<Kept> {
        let each =
            BUDGETS.iter().flat_map(|budget| budget.systems.iter().map(move |system| (budget, *system)));
        let kept = each.map(|(budget, system)| self.kept(budget, system));
        kept.filter(|kept| !kept.by_clients.is_empty()).collect()
    }

    /// The budgets for as many clients as they are meant for.
    pub(crate) fn contract(&self) -> Vec<Verdict> {
        let kept = self.budgets().into_iter().flat_map(|kept| kept.by_clients);
        kept.filter(|(clients, _)| *clients == BUDGET_CLIENTS).map(|(_, verdict)| verdict).collect()
    }

    fn kept(&self, budget: &Budget, system: System) -> Kept {
        let Budget { operation, what, of, bound, .. } = budget;
        let what = format!("{}, {what}, by {}", operation.name(), system.name());
        let is_its = |row: &&Row| {
            row.operation == *operation && row.system == system && row.value_bytes == BUDGET_VALUE_BYTES
        };
        let verdict = |row: &Row| {
            let measured = row.ratios.as_ref().and_then(of);
            let what = format!("{what}, {} clients", row.clients);
            (row.clients, Verdict::new(what, measured, *bound).under(row.disturbance))
        };
        let by_clients = self.rows.iter().filter(is_its).map(verdict).collect();
        Kept { what, bound: *bound, by_clients }
    }

    pub(crate) fn budget_table(&self) -> Table {
        let budgets = self.budgets();
        let mut clients: Vec<_> =
            budgets.iter().flat_map(|kept| kept.by_clients.iter().map(|(clients, _)| *clients)).collect();
        clients.sort_unstable();
        clients.dedup();
        let heads = clients.iter().map(|clients| match clients {
            1 => "1 client".to_owned(),
            clients => format!("{clients} clients"),
        });
        let heads: Vec<_> = ["budget".to_owned(), "bound".to_owned()].into_iter().chain(heads).collect();
        let heads: Vec<_> = heads.iter().map(String::as_str).collect();
        let mut table = Table::new("Budgets, as ratios to etcd, values of 100 bytes", &heads);
        for kept in budgets {
            let cell = |clients: &usize| {
                let found = kept.by_clients.iter().find(|(measured, _)| measured == clients);
                found.map_or_else(String::new, |(_, verdict)| {
                    let word = if verdict.is_met { "met" } else { "not met" };
                    marked(&format!("{} {word}", times(verdict.measured)), verdict.disturbance)
                })
            };
            let cells: Vec<_> = clients.iter().map(cell).collect();
            table.row([kept.what.clone(), kept.bound.to_string()].into_iter().chain(cells));
        }
        table
    }

    pub(crate) fn disturbance(&self) -> f64 {
        self.rows.iter().map(|row| row.disturbance).fold(0.0, f64::max)
    }
}

fn row(cell: &Cell, system: System) -> Row {
    let of = |system: System| {
        let rounds = cell.rounds.iter().flatten();
        rounds.filter(move |(measured, _)| *measured == system).map(|(_, sample)| sample)
    };
    let figure = |figure: fn(&Sample) -> f64| median(of(system).map(figure).collect());
    let to_etcd = |figure: fn(&Sample) -> f64| {
        let pairs = of(system).zip(of(System::Etcd));
        let ratios: Option<Vec<_>> =
            pairs.map(|(ours, theirs)| ratio(figure(ours), figure(theirs))).collect();
        ratios.filter(|ratios| !ratios.is_empty()).map(median)
    };
    let ratios = || Ratios {
        per_second: to_etcd(Sample::per_second),
        p99: to_etcd(|sample| sample.latency_us(0.99)),
        server_cpu: to_etcd(Sample::cpu_us),
    };
    Row {
        operation: cell.operation,
        clients: cell.clients,
        value_bytes: cell.value_bytes,
        system,
        per_second: figure(Sample::per_second),
        p50_us: figure(|sample| sample.latency_us(0.5)),
        p99_us: figure(|sample| sample.latency_us(0.99)),
        p999_us: figure(|sample| sample.latency_us(0.999)),
        server_cpu_us: figure(Sample::cpu_us),
        written_bytes_per_operation: figure(Sample::written_per_operation),
        resident_bytes: figure(|sample| sample.used.resident as f64),
        failed: of(system).map(|sample| sample.failed).sum(),
        disturbance: of(system).map(Sample::disturbance).fold(0.0, f64::max),
        ratios: (system != System::Etcd).then(ratios),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measure::new_histogram;
    use crate::meter::Used;

    /// In a second, so many operations of so many microseconds, at so much CPU each.
    fn sample(operations: u64, latency_us: u64, cpu_us: u64) -> Sample {
        let mut latencies = new_histogram().unwrap();
        latencies.record_n(latency_us, operations).unwrap();
        let cpu = Duration::from_micros(cpu_us * operations);
        let used = Used { time: Duration::from_secs(1), cpu, ..Used::default() };
        Sample { latencies, failed: 0, example: None, by_client: Vec::new(), used, seconds: Vec::new() }
    }

    fn cell(operation: Operation, rounds: Vec<Vec<(System, Sample)>>) -> Cell {
        Cell { operation, clients: 64, value_bytes: 100, rounds }
    }

    #[test]
    fn ratios_are_made_within_a_round_and_their_median_counts() {
        let round =
            |ours, theirs| vec![(System::Calls, sample(ours, 10, 1)), (System::Etcd, sample(theirs, 10, 2))];
        // Twice, four times, three times: the machine was slow in one round, for both.
        let rounds = vec![round(2_000, 1_000), round(400, 100), round(3_000, 1_000)];
        let row = row(&cell(Operation::Put, rounds), System::Calls);
        assert_eq!(row.per_second, 2_000.0);
        let Ratios { per_second, p99, server_cpu } = row.ratios.unwrap();
        assert_eq!((per_second, p99, server_cpu), (Some(3.0), Some(1.0), Some(0.5)));
    }

    #[test]
    fn a_budget_is_for_its_operation_and_system_alone() {
        let round = vec![
            (System::Etcd, sample(1_000, 100, 100)),
            (System::Calls, sample(2_600, 40, 41)),
            (System::Stream, sample(2_400, 50, 25)),
        ];
        let comparison = Comparison::of(&[cell(Operation::DurablePut, vec![round])], "etcd".to_owned());
        let kept: Vec<_> = comparison.budgets().into_iter().flat_map(|kept| kept.by_clients).collect();
        let words: Vec<_> = kept.iter().map(|(_, verdict)| (verdict.what.as_str(), verdict.word())).collect();
        assert_eq!(
            words,
            [
                ("durable put, server CPU, by calls, 64 clients", "FAIL"),
                ("durable put, server CPU, by stream, 64 clients", "PASS"),
                ("durable put, throughput, by calls, 64 clients", "PASS"),
                ("durable put, throughput, by stream, 64 clients", "FAIL"),
                ("durable put, p99, by calls, 64 clients", "PASS"),
                ("durable put, p99, by stream, 64 clients", "FAIL"),
            ]
        );
    }

    #[test]
    fn nothing_measured_of_etcd_gives_no_ratio() {
        let row = row(&cell(Operation::Get, vec![vec![(System::Calls, sample(10, 1, 1))]]), System::Calls);
        assert_eq!(row.ratios.unwrap().per_second, None);
    }
}
