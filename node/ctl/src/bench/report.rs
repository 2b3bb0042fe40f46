//! What the load measured, printed.

use std::time::Duration;

use serde::Serialize;

use super::load::{Outcomes, Tally};
use crate::args::Output;
use crate::failure::Failure;
use crate::output::{print_json, print_line, table};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    seconds: f64,
    operations_per_second: f64,
    operations: Vec<OperationReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OperationReport {
    operation: &'static str,
    done: u64,
    missing: u64,
    failed: u64,
    unknown: u64,
    other: u64,
    per_second: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
}

pub(super) fn print(output: Output, tally: &Tally, elapsed: Duration) -> Result<(), Failure> {
    let seconds = elapsed.as_secs_f64();
    let kinds = [("get", &tally.gets), ("put", &tally.puts)];
    let asked = |outcomes: &Outcomes| outcomes.done + outcomes.failed + outcomes.unknown + outcomes.other;
    let operations: Vec<_> = kinds
        .into_iter()
        .filter(|(_, outcomes)| asked(outcomes) > 0)
        .map(|(operation, outcomes)| report(operation, outcomes, seconds))
        .collect();
    let operations_per_second = operations.iter().map(|operation| operation.per_second).sum();
    let report = Report { seconds, operations_per_second, operations };
    match output {
        Output::Json => print_json(&report),
        Output::Table => print_table(&report),
    }
}

fn report(operation: &'static str, outcomes: &Outcomes, seconds: f64) -> OperationReport {
    let at = |quantile| outcomes.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    OperationReport {
        operation,
        done: outcomes.done,
        missing: outcomes.missing,
        failed: outcomes.failed,
        unknown: outcomes.unknown,
        other: outcomes.other,
        per_second: outcomes.done as f64 / seconds,
        p50_ms: at(0.50),
        p95_ms: at(0.95),
        p99_ms: at(0.99),
        max_ms: outcomes.latencies.max() as f64 / 1000.0,
        first_error: outcomes.example.clone(),
    }
}

fn print_table(report: &Report) -> Result<(), Failure> {
    let header = [
        "OPERATION",
        "DONE",
        "MISSING",
        "FAILED",
        "UNKNOWN",
        "OTHER",
        "PER SECOND",
        "P50 MS",
        "P95 MS",
        "P99 MS",
        "MAX MS",
    ];
    let row = |of: &OperationReport| {
        let counts = [of.done, of.missing, of.failed, of.unknown, of.other].map(|count| count.to_string());
        let latencies = [of.p50_ms, of.p95_ms, of.p99_ms, of.max_ms].map(|ms| format!("{ms:.2}"));
        let mut row = vec![of.operation.to_owned()];
        row.extend(counts);
        row.push(format!("{:.0}", of.per_second));
        row.extend(latencies);
        row
    };
    let rows: Vec<_> = report.operations.iter().map(row).collect();
    print_line(&table(&header, &rows))?;
    print_line(&format!(
        "{:.0} operations per second for {:.1} s",
        report.operations_per_second, report.seconds
    ))?;
    for operation in &report.operations {
        if let Some(error) = &operation.first_error {
            eprintln!("the first {} that was not done: {error}", operation.operation);
        }
    }
    Ok(())
}
