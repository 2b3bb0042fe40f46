//! What the load measured, printed.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::figures::{per_second, round};
use super::load::Load;
use super::tally::{Errors, Outcomes, Tally};
use crate::args::{BenchArgs, Globals, Output};
use crate::failure::Failure;
use crate::output::{bytes, print_json, print_line, table};

/// What a measurement has brought.
pub(super) struct Measured {
    pub tally: Tally,
    /// Until the last answer.
    pub elapsed: Duration,
    /// Requests that were due and never sent, since all clients waited for answers.
    pub not_sent: u64,
    /// Requests whose answers were not waited for.
    pub unanswered: u64,
    /// By a signal, before it was over.
    pub is_interrupted: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    seconds: f64,
    interrupted: bool,
    operations_per_second: f64,
    bytes_per_second: f64,
    operations: Vec<OperationReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hottest_key: Option<OperationReport>,
    not_sent: u64,
    unanswered: u64,
    load: LoadReport,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OperationReport {
    operation: String,
    done: u64,
    missing: u64,
    failed: u64,
    unknown: u64,
    overloaded: u64,
    other: u64,
    per_second: f64,
    bytes_per_second: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    errors: Vec<ErrorReport>,
}

/// Of those that were not done, by reason.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorReport {
    reason: String,
    count: u64,
    first: String,
}

/// What was asked for, for whoever keeps the report.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadReport {
    clients: u32,
    threads: u32,
    keyspace: String,
    keys: u32,
    distribution: String,
    read_share: f64,
    value_bytes: [u32; 2],
    session: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consistency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<String>,
}

pub(super) fn print(globals: &Globals, load: &Load, measured: &Measured) -> Result<(), Failure> {
    let report = report(globals, load, measured);
    match globals.output {
        Output::Json => print_json(&report),
        Output::Table => print_line(&text(&report)),
    }
}

fn report(globals: &Globals, load: &Load, measured: &Measured) -> Report {
    let Measured { tally, elapsed, not_sent, unanswered, is_interrupted } = measured;
    let kinds = [("get", &tally.gets), ("put", &tally.puts)].into_iter();
    let asked = kinds.filter(|(_, outcomes)| outcomes.ended() > 0);
    let operations = asked.map(|(name, outcomes)| operation(name.to_owned(), outcomes, *elapsed));
    let operations: Vec<_> = operations.collect();
    let hottest = load.hottest().map(|key| operation(load.name(key), &tally.hottest, *elapsed));
    let sum = |figure: fn(&OperationReport) -> f64| operations.iter().map(figure).sum();
    Report {
        seconds: elapsed.as_secs_f64(),
        interrupted: *is_interrupted,
        operations_per_second: sum(|operation| operation.per_second),
        bytes_per_second: sum(|operation| operation.bytes_per_second),
        hottest_key: hottest,
        not_sent: *not_sent,
        unanswered: *unanswered,
        load: report_load(globals, &load.args),
        operations,
    }
}

fn report_load(globals: &Globals, args: &BenchArgs) -> LoadReport {
    LoadReport {
        clients: args.clients,
        threads: args.threads.min(args.clients),
        keyspace: globals.keyspace.clone(),
        keys: args.keys,
        distribution: name(&args.distribution),
        read_share: args.read_share,
        value_bytes: [*args.value_bytes.start(), *args.value_bytes.end()],
        session: args.session,
        rate: args.rate,
        consistency: globals.consistency.as_ref().map(name),
        durability: args.durability.as_ref().map(name),
    }
}

/// As it is typed.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn operation(operation: String, outcomes: &Outcomes, elapsed: Duration) -> OperationReport {
    let ms = |quantile| outcomes.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let error = |(reason, Errors { count, first }): (&String, &Errors)| ErrorReport {
        reason: reason.clone(),
        count: *count,
        first: first.to_string(),
    };
    OperationReport {
        operation,
        done: outcomes.done,
        missing: outcomes.missing,
        failed: outcomes.failed,
        unknown: outcomes.unknown,
        overloaded: outcomes.overloaded,
        other: outcomes.other,
        per_second: per_second(outcomes.done, elapsed),
        bytes_per_second: per_second(outcomes.bytes, elapsed),
        p50_ms: ms(0.50),
        p95_ms: ms(0.95),
        p99_ms: ms(0.99),
        p999_ms: ms(0.999),
        max_ms: outcomes.latencies.max() as f64 / 1000.0,
        errors: outcomes.errors.iter().map(error).collect(),
    }
}

/// A column of the table. Those that may be left out are, where they would say 0 in each line.
struct Column {
    name: &'static str,
    cell: fn(&OperationReport) -> String,
    may_be_left_out: bool,
}

const fn column(name: &'static str, cell: fn(&OperationReport) -> String) -> Column {
    Column { name, cell, may_be_left_out: false }
}

const fn rare(name: &'static str, cell: fn(&OperationReport) -> String) -> Column {
    Column { name, cell, may_be_left_out: true }
}

const COLUMNS: [Column; 14] = [
    column("OPERATION", |of| of.operation.clone()),
    column("DONE", |of| of.done.to_string()),
    rare("MISSING", |of| of.missing.to_string()),
    column("FAILED", |of| of.failed.to_string()),
    column("UNKNOWN", |of| of.unknown.to_string()),
    rare("OVERLOADED", |of| of.overloaded.to_string()),
    rare("OTHER", |of| of.other.to_string()),
    column("PER SECOND", |of| round(of.per_second)),
    column("BYTES/S", |of| bytes(of.bytes_per_second)),
    column("P50 MS", |of| format!("{:.2}", of.p50_ms)),
    column("P95 MS", |of| format!("{:.2}", of.p95_ms)),
    column("P99 MS", |of| format!("{:.2}", of.p99_ms)),
    column("P99.9 MS", |of| format!("{:.2}", of.p999_ms)),
    column("MAX MS", |of| format!("{:.2}", of.max_ms)),
];

fn text(report: &Report) -> String {
    let lines: Vec<_> = report.operations.iter().chain(&report.hottest_key).collect();
    let is_shown =
        |column: &&Column| !column.may_be_left_out || lines.iter().any(|line| (column.cell)(line) != "0");
    let columns: Vec<_> = COLUMNS.iter().filter(is_shown).collect();
    let header: Vec<_> = columns.iter().map(|column| column.name).collect();
    let row = |line: &&OperationReport| columns.iter().map(|column| (column.cell)(line)).collect();
    let mut rows: Vec<Vec<_>> = lines.iter().map(row).collect();
    if let (Some(_), Some([name, ..])) = (&report.hottest_key, rows.last_mut().map(Vec::as_mut_slice)) {
        *name = format!("hottest: {name}");
    }
    let mut text = vec![table(&header, &rows)];
    let errors = report.operations.iter().flat_map(|of| of.errors.iter().map(move |error| (of, error)));
    text.extend(errors.map(|(of, ErrorReport { reason, count, first })| {
        format!("{} of {}: {reason}, the first: {first}", count, of.operation)
    }));
    text.push(format!(
        "{} operations and {} bytes per second for {:.1} s{}",
        round(report.operations_per_second),
        bytes(report.bytes_per_second),
        report.seconds,
        if report.interrupted { ", interrupted" } else { "" }
    ));
    if report.not_sent > 0 {
        let rate = report.load.rate.unwrap_or_default();
        text.push(format!(
            "{} operations were due, not sent, and are in no percentile: {rate} per second are more than {} clients have got answers for",
            report.not_sent, report.load.clients
        ));
    }
    if report.unanswered > 0 {
        text.push(format!("{} operations were sent whose answers were not waited for", report.unanswered));
    }
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use crate::bench::tally::{Done, Kind};
    use clap::Parser;
    use keystore_client::{Detail, Error, Reason};

    fn measured() -> Measured {
        let mut tally = Tally::default();
        for ms in 1..=1000 {
            let done = Ok(Done { bytes: 100, is_missing: false });
            tally.note(Kind::Get, Duration::from_millis(ms), &done);
        }
        let detail =
            Detail { reason: Reason::DISK_FULL, message: "full".to_owned(), acks: None, needed: None };
        tally.note(Kind::Put, Duration::ZERO, &Err(Error::Failed(detail)));
        tally.note_hottest(Duration::from_millis(5), &Ok(Done { bytes: 100, is_missing: false }));
        Measured {
            tally,
            elapsed: Duration::from_secs(10),
            not_sent: 0,
            unanswered: 0,
            is_interrupted: false,
        }
    }

    fn report_of(arguments: &[&str], measured: &Measured) -> Report {
        let arguments = [&["keystorectl", "bench"], arguments].concat();
        let Arguments { globals, command } = Arguments::try_parse_from(arguments).unwrap();
        let Command::Bench(args) = command else { panic!("it is a bench") };
        report(&globals, &Load::new(&args), measured)
    }

    #[test]
    fn the_table_has_a_line_for_each_kind_and_no_columns_of_nothing() {
        let text = text(&report_of(&[], &measured()));
        let lines: Vec<_> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let header = "OPERATION DONE FAILED UNKNOWN PER SECOND BYTES/S P50 MS P95 MS P99 MS P99.9 MS MAX MS";
        assert_eq!(words(lines[0]), words(header));
        let get = "get 1000 0 0 100 10.0k 500.22 950.27 990.21 999.42 1000.45";
        assert_eq!(words(lines[1]), words(get));
        assert_eq!(words(lines[2]), words("put 0 1 0 0.0 0 0.00 0.00 0.00 0.00 0.00"));
        assert_eq!(lines[3], "1 of put: DISK_FULL, the first: failed: full");
        assert_eq!(lines[4], "100 operations and 10.0k bytes per second for 10.0 s");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_said() {
        let mut measured = Measured { not_sent: 70, unanswered: 3, is_interrupted: true, ..measured() };
        measured.tally.gets.missing = 9;
        let report = report_of(&["--distribution", "zipf", "--rate", "2000"], &measured);
        let text = text(&report);
        for part in [
            "MISSING",
            "\nhottest: bench/0000000000  1 ",
            " for 10.0 s, interrupted\n",
            "\n70 operations were due, not sent, and are in no percentile: 2000 per",
            "\n3 operations were sent",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("OVERLOADED"));
        assert_eq!(report.operations_per_second, 100.0, "the hottest key's are among those of their kinds");
    }

    #[test]
    fn programs_get_every_figure_and_what_was_asked_for() {
        let report = report_of(&["--consistency", "one", "--value-bytes", "1-5"], &measured());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["operations"][0]["p999Ms"], 999.423);
        assert_eq!(json["operations"][0]["bytesPerSecond"], 10_000.0);
        assert_eq!(
            json["operations"][1]["errors"],
            serde_json::json!([{"reason": "DISK_FULL", "count": 1, "first": "failed: full"}])
        );
        assert_eq!(json["hottestKey"], serde_json::Value::Null);
        assert_eq!(
            json["load"],
            serde_json::json!({
                "clients": 64, "threads": 1, "keyspace": "default", "keys": 10_000,
                "distribution": "uniform", "readShare": 0.5, "valueBytes": [1, 5], "session": false,
                "consistency": "one",
            })
        );
    }
}
