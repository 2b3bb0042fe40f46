//! The single figures as tables. Pure.

use super::Figures;
use super::engine::{EngineFigures, Start, Written};
use super::idle::Idle;
use crate::table::{Table, marked, mib, number};

impl Figures {
    pub(crate) fn tables(&self) -> Vec<Table> {
        vec![self.writes(), self.scans(), self.starts(), self.memory(), self.idle()]
    }

    fn writes(&self) -> Table {
        let heads =
            ["engine", "records", "value B", "puts/s", "written per byte put", "on disk per byte put"];
        let mut table = Table::new("Durable puts of new keys, and what a node writes for them", &heads);
        for EngineFigures { engine, writes, .. } in &self.engines {
            for Written { filled, per_byte, disk_per_byte, is_quiet, disturbance } in writes {
                let still = if *is_quiet { "" } else { " and going on" };
                table.row([
                    marked(engine.name(), *disturbance),
                    number(f64::from(filled.records), 0),
                    filled.value_bytes.to_string(),
                    number(filled.per_second(), 0),
                    format!("{per_byte:.2}{still}"),
                    format!("{disk_per_byte:.2}"),
                ]);
            }
        }
        table
    }

    fn scans(&self) -> Table {
        let heads = ["engine", "consistency", "scans at once", "records/s", "MB/s", "CPU µs a record"];
        let mut table = Table::new("Scans of all records", &heads);
        for EngineFigures { engine, scans, .. } in &self.engines {
            for scan in scans {
                table.row([
                    marked(engine.name(), scan.disturbance),
                    scan.consistency.clone(),
                    scan.scans.to_string(),
                    number(scan.records_per_second, 0),
                    number(scan.bytes_per_second / 1e6, 1),
                    number(scan.server_cpu_us_per_record, 1),
                ]);
            }
        }
        table
    }

    fn starts(&self) -> Table {
        let heads = ["engine", "after", "records", "checkpoints", "s until ready", "s per million"];
        let mut table = Table::new("Starts of a node", &heads);
        for EngineFigures { engine, starts, .. } in &self.engines {
            for start in starts {
                let Start { after, records, checkpoints, seconds, disturbance } = start;
                let per_million = start.seconds_per_million();
                table.row([
                    marked(engine.name(), *disturbance),
                    after.clone(),
                    number(f64::from(*records), 0),
                    checkpoints.map_or_else(String::new, |checkpoints| number(checkpoints, 0)),
                    number(*seconds, 2),
                    per_million.map_or_else(String::new, |seconds| number(seconds, 2)),
                ]);
            }
        }
        table
    }

    fn memory(&self) -> Table {
        let heads = ["engine", "empty MiB", "filled MiB", "MiB per million keys"];
        let mut table = Table::new("Resident memory of a node, values of 100 bytes", &heads);
        for EngineFigures { engine, memory, .. } in &self.engines {
            table.row([
                engine.name().to_owned(),
                mib(memory.empty_bytes),
                mib(memory.filled_bytes),
                mib(memory.per_million_bytes),
            ]);
        }
        table
    }

    fn idle(&self) -> Table {
        let mut table = Table::new("Idle", &["process", "CPU ms a minute", "resident MiB"]);
        let nodes = self.engines.iter().map(|of| (format!("node, {}", of.engine.name()), of.idle));
        let operator = self.operator.map(|idle| ("operator".to_owned(), idle));
        for (process, Idle { cpu_ms_per_minute, resident_bytes, disturbance }) in nodes.chain(operator) {
            table.row([marked(&process, disturbance), number(cpu_ms_per_minute, 0), mib(resident_bytes)]);
        }
        table
    }
}
