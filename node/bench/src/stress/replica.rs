//! One replica of three slow, or stopped: what clients of the other two notice, as a ratio to when it was healthy.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Shape, prepare, store};
use crate::compare::Operation;
use crate::measure::{Sample, observe};
use crate::servers::{NODES, Programs, Servers};
use crate::statistics::{median, ratio};
use crate::target::calls;
use crate::verdict::{Bound, Verdict};

const P99_RATIO_MAX: f64 = 1.5;
/// A slow replica does nothing for so long,
const SLOW_HALT: Duration = Duration::from_millis(40);
/// and then works for so long, over and over.
const SLOW_RUN: Duration = Duration::from_millis(60);
/// The node that is troubled.
const TROUBLED: usize = NODES - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Trouble {
    Healthy,
    Slow,
    Stopped,
}

impl Trouble {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Stopped => "stopped",
        }
    }
}

/// The medians of rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replica {
    pub(crate) operation: Operation,
    pub(crate) trouble: Trouble,
    pub(crate) clients: usize,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// To that of the same round with all healthy; absent of the healthy ones.
    pub(crate) p99_ratio: Option<f64>,
    /// In all rounds.
    pub(crate) failed: u64,
    pub(crate) disturbance: f64,
}

impl Replica {
    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        if self.trouble == Trouble::Healthy {
            return Vec::new();
        }
        let verdict = |what: &str, measured, bound| {
            let (operation, trouble) = (self.operation.name(), self.trouble.name());
            let what = format!("{operation}, one replica {trouble}: {what}");
            Verdict::new(what, measured, bound).under(self.disturbance)
        };
        vec![
            verdict("p99, to that of healthy ones", self.p99_ratio, Bound::AtMost(P99_RATIO_MAX)),
            verdict("failed requests", Some(self.failed as f64), Bound::AtMost(0.0)),
        ]
    }
}

pub(super) async fn run(programs: &Programs, shape: &Shape) -> Result<Vec<Replica>> {
    let mut servers = store(programs, &shape.engine)?;
    prepare(&mut servers).await?;
    let mut measured = Vec::new();
    for operation in [Operation::DurablePut, Operation::Get] {
        let mut rounds = Vec::new();
        for _ in 0..shape.rounds {
            let mut round = Vec::new();
            for trouble in [Trouble::Healthy, Trouble::Slow, Trouble::Stopped] {
                round.push((trouble, measure_one(&servers, shape, operation, trouble).await?));
            }
            rounds.push(round);
        }
        for trouble in [Trouble::Healthy, Trouble::Slow, Trouble::Stopped] {
            measured.push(summary(&rounds, operation, trouble, shape.clients));
        }
    }
    Ok(measured)
}

async fn measure_one(
    servers: &Servers,
    shape: &Shape,
    operation: Operation,
    trouble: Trouble,
) -> Result<Sample> {
    let mut channels = servers.channels()?;
    channels.truncate(TROUBLED);
    let targets = calls(&channels, operation.levels());
    let node = servers.each().get(TROUBLED).context("there is no such node")?;
    let meanwhile = async |ends| {
        match trouble {
            Trouble::Healthy => {}
            Trouble::Stopped => node.halt()?,
            Trouble::Slow => {
                while Instant::now() < ends {
                    node.halt()?;
                    sleep(SLOW_HALT).await;
                    node.go_on()?;
                    sleep(SLOW_RUN).await;
                }
            }
        }
        Ok(())
    };
    let sample = observe(servers, &targets, &shape.load(operation, shape.clients), meanwhile).await?;
    node.go_on()?;
    servers.wait_for_hints().await?;
    eprintln!(
        "  {}, one replica {}: {:.0}/s, p99 {:.2} ms, {} failed",
        operation.name(),
        trouble.name(),
        sample.per_second(),
        sample.latency_us(0.99) / 1e3,
        sample.failed,
    );
    Ok(sample)
}

fn summary(
    rounds: &[Vec<(Trouble, Sample)>],
    operation: Operation,
    trouble: Trouble,
    clients: usize,
) -> Replica {
    let of = |trouble: Trouble| {
        rounds.iter().flatten().filter(move |(measured, _)| *measured == trouble).map(|(_, sample)| sample)
    };
    let figure = |figure: fn(&Sample) -> f64| median(of(trouble).map(figure).collect());
    let p99 = |sample: &Sample| sample.latency_us(0.99);
    let ratios: Option<Vec<_>> = of(trouble)
        .zip(of(Trouble::Healthy))
        .map(|(troubled, healthy)| ratio(p99(troubled), p99(healthy)))
        .collect();
    let p99_ratio = ratios.filter(|ratios| !ratios.is_empty()).map(median);
    Replica {
        operation,
        trouble,
        clients,
        per_second: figure(Sample::per_second),
        p50_us: figure(|sample| sample.latency_us(0.5)),
        p99_us: figure(|sample| sample.latency_us(0.99)),
        max_us: of(trouble).map(|sample| sample.latencies.max()).max().unwrap_or_default() as f64,
        p99_ratio: p99_ratio.filter(|_| trouble != Trouble::Healthy),
        failed: of(trouble).map(|sample| sample.failed).sum(),
        disturbance: of(trouble).map(Sample::disturbance).fold(0.0, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::new_histogram;
    use crate::meter::Used;

    fn sample(latency_us: u64, failed: u64) -> Sample {
        let mut latencies = new_histogram().unwrap();
        latencies.record_n(latency_us, 1_000).unwrap();
        let used = Used { time: Duration::from_secs(1), ..Used::default() };
        Sample { latencies, failed, example: None, by_client: Vec::new(), used, seconds: Vec::new() }
    }

    fn words(rounds: &[Vec<(Trouble, Sample)>], trouble: Trouble) -> Vec<&'static str> {
        summary(rounds, Operation::Get, trouble, 8).verdicts().iter().map(Verdict::word).collect()
    }

    #[test]
    fn a_troubled_replica_may_cost_half_as_much_again_and_no_request() {
        let round = |slow, stopped, failed| {
            vec![
                (Trouble::Healthy, sample(100, 0)),
                (Trouble::Slow, sample(slow, 0)),
                (Trouble::Stopped, sample(stopped, failed)),
            ]
        };
        let rounds = [round(149, 160, 0), round(500, 155, 1), round(120, 100, 0)];
        assert!(words(&rounds, Trouble::Healthy).is_empty());
        assert_eq!(words(&rounds, Trouble::Slow), ["PASS", "PASS"], "the median of the rounds counts");
        assert_eq!(words(&rounds, Trouble::Stopped), ["FAIL", "FAIL"], "each failure counts");
        let nothing = [vec![(Trouble::Stopped, sample(1, 0))]];
        assert_eq!(words(&nothing, Trouble::Stopped), ["FAIL", "PASS"]);
    }
}
