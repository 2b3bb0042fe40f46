//! The stress tests as tables. Pure.

use super::Stress;
use crate::table::{Table, marked, mib, number, percent, times};
use crate::verdict;

impl Stress {
    pub(crate) fn tables(&self) -> Vec<Table> {
        let tables = [
            (verdict::table(&self.verdicts), self.verdicts.is_empty()),
            (self.goodput(), self.goodput.is_empty()),
            (self.crowd(), self.crowd.is_empty()),
            (self.replica(), self.replica.is_empty()),
            (self.sizes(), self.sizes.is_none()),
        ];
        tables.into_iter().filter(|(_, is_empty)| !is_empty).map(|(table, _)| table).collect()
    }

    fn goodput(&self) -> Table {
        let cores = self.goodput.first().map_or("", |goodput| &goodput.cores);
        let heads = [
            "operation",
            "peak/s",
            "clients",
            "p99 ms",
            "3 × clients: per s",
            "p99 ms",
            "3 × rate: offered/s",
            "held back/s",
            "served/s",
            "p99 ms",
            "refused",
            "p50 ms",
            "p99 ms",
            "failed/s",
        ];
        let mut table =
            Table::new(&format!("Three times what saturates the store, over streams; {cores}"), &heads);
        for of in &self.goodput {
            table.row([
                marked(of.operation.name(), of.disturbance),
                number(of.peak_per_second, 0),
                of.peak_clients.to_string(),
                number(of.peak_p99_us / 1e3, 1),
                number(of.crowded_per_second, 0),
                number(of.crowded_p99_us / 1e3, 1),
                number(of.offered_per_second, 0),
                number(of.held_back_per_second, 0),
                number(of.served_per_second, 0),
                number(of.served_p99_us / 1e3, 0),
                percent(of.refused_share()),
                number(of.refused_p50_us / 1e3, 1),
                number(of.refused_p99_us / 1e3, 1),
                number(of.failed_per_second, 0),
            ]);
        }
        table
    }

    fn crowd(&self) -> Table {
        let heads = [
            "operation",
            "connections",
            "in flight",
            "per s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "MiB before",
            "at peak",
            "after",
            "fewest",
            "median",
            "most",
            "Jain",
            "clients' CPU",
        ];
        let title = "Many connections: memory of the largest node, and requests that a connection has completed \
                     for each that it keeps in flight";
        let mut table = Table::new(title, &heads);
        for of in &self.crowd {
            table.row([
                marked(of.operation.name(), of.disturbance),
                number(of.connections as f64, 0),
                number(of.in_flight as f64, 0),
                number(of.per_second, 0),
                number(of.p50_us / 1e3, 0),
                number(of.p99_us / 1e3, 0),
                number(of.max_us / 1e3, 0),
                mib(of.resident_before as f64),
                mib(of.resident_peak as f64),
                mib(of.resident_after as f64),
                number(of.completed.min, 0),
                number(of.completed.median, 0),
                number(of.completed.max, 0),
                of.jain_index.map_or_else(|| "–".to_owned(), |index| format!("{index:.3}")),
                percent(of.clients_busy),
            ]);
        }
        table
    }

    fn replica(&self) -> Table {
        let heads =
            ["operation", "replica", "clients", "per s", "p50 ms", "p99 ms", "× p99", "max ms", "failed"];
        let mut table = Table::new("One replica of three in trouble, clients at the other two", &heads);
        for of in &self.replica {
            table.row([
                marked(of.operation.name(), of.disturbance),
                of.trouble.name().to_owned(),
                of.clients.to_string(),
                number(of.per_second, 0),
                number(of.p50_us / 1e3, 2),
                number(of.p99_us / 1e3, 2),
                of.p99_ratio.map_or_else(String::new, |ratio| times(Some(ratio))),
                number(of.max_us / 1e3, 1),
                of.failed.to_string(),
            ]);
        }
        table
    }

    fn sizes(&self) -> Table {
        let clients = self.sizes.as_ref().map_or(0, |sizes| sizes.clients);
        let heads = ["operation", "keys", "per s", "p50 ms", "p99 ms", "× p99", "failed", "large/s"];
        let mut table = Table::new(&format!("Small values, {clients} clients"), &heads);
        for of in self.sizes.iter().flat_map(|sizes| &sizes.small) {
            table.row([
                marked(of.operation.name(), of.disturbance),
                of.circumstance.name().to_owned(),
                number(of.per_second, 0),
                number(of.p50_us / 1e3, 2),
                number(of.p99_us / 1e3, 2),
                of.p99_ratio.map_or_else(String::new, |ratio| times(Some(ratio))),
                of.failed.to_string(),
                number(of.large_per_second, 0),
            ]);
        }
        table
    }
}
