//! Three times as much as the store can do: what it then still does, and how quickly it refuses the rest.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Shape, store};
use crate::compare::Operation;
use crate::cores::Apart;
use crate::measure::{Load, measure, observe};
use crate::open_loop::{Counted, Offered, offer};
use crate::servers::{NODES, Programs, Servers};
use crate::statistics::{is_saturated, ratio};
use crate::target::{Stream, streams};
use crate::verdict::{Bound, Verdict};

const CLIENTS: &[usize] = &[64, 256, 1_024, 4_096, 8_192];
const TIMES_THE_PEAK: f64 = 3.0;
const GOODPUT_MIN: f64 = 0.9;
/// Less than this of what was to be offered says that the clients were too slow, and nothing of the store.
const OFFERED_MIN: f64 = 0.95;
/// And so does this.
const CLIENTS_BUSY_MAX: f64 = 0.95;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Goodput {
    pub(crate) operation: Operation,
    pub(crate) cores: String,
    /// As many as did best, of closed loops with more and more clients; measured before and after the rest.
    pub(crate) peak_clients: usize,
    pub(crate) peak_per_second: f64,
    pub(crate) peak_p99_us: f64,
    /// A closed loop with three times as many clients.
    pub(crate) crowded_per_second: f64,
    pub(crate) crowded_p99_us: f64,
    /// Three times the peak, arriving whatever becomes of it.
    pub(crate) offered_per_second: f64,
    /// Of these, what flow control has kept the clients from sending.
    pub(crate) held_back_per_second: f64,
    pub(crate) served_per_second: f64,
    pub(crate) served_p99_us: f64,
    pub(crate) refused_per_second: f64,
    pub(crate) refused_p50_us: f64,
    pub(crate) refused_p99_us: f64,
    /// Neither served nor refused.
    pub(crate) failed_per_second: f64,
    pub(crate) failed_example: Option<String>,
    /// What the clients had of their one core.
    pub(crate) clients_busy: f64,
    pub(crate) disturbance: f64,
}

impl Goodput {
    pub(super) fn refused_share(&self) -> f64 {
        ratio(self.refused_per_second, self.answered_per_second()).unwrap_or_default()
    }

    fn answered_per_second(&self) -> f64 {
        self.served_per_second + self.refused_per_second + self.failed_per_second
    }

    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |what: &str, measured, bound| {
            Verdict::new(format!("{}: {what}", self.operation.name()), measured, bound)
                .under(self.disturbance)
        };
        let wanted = self.peak_per_second * TIMES_THE_PEAK;
        let failed = ratio(self.failed_per_second, self.answered_per_second());
        vec![
            verdict(
                "goodput with three times the clients of the peak, to the peak",
                ratio(self.crowded_per_second, self.peak_per_second),
                Bound::AtLeast(GOODPUT_MIN),
            ),
            verdict(
                "goodput at three times the rate of the peak, to the peak",
                ratio(self.served_per_second, self.peak_per_second),
                Bound::AtLeast(GOODPUT_MIN),
            ),
            verdict(
                "requests that were due, to three times the rate of the peak",
                ratio(self.offered_per_second, wanted),
                Bound::AtLeast(OFFERED_MIN),
            ),
            verdict("clients' share of their core", Some(self.clients_busy), Bound::AtMost(CLIENTS_BUSY_MAX)),
            verdict("answered with anything else than success or OVERLOADED", failed, Bound::AtMost(0.001)),
        ]
    }
}

pub(super) async fn run(programs: &Programs, shape: &Shape) -> Result<Vec<Goodput>> {
    let mut measured = Vec::new();
    for operation in [Operation::DurablePut, Operation::Get] {
        // Servers of their own: what one leaves behind is not to disturb the other.
        let (mut servers, apart) = Apart::from(|| store(programs, &shape.engine))?;
        super::prepare(&mut servers).await?;
        measured.push(measure_one(&servers, shape, operation, &apart.says).await?);
    }
    Ok(measured)
}

async fn measure_one(servers: &Servers, shape: &Shape, operation: Operation, cores: &str) -> Result<Goodput> {
    let targets = streams(servers.connections(shape.streams * NODES)?, operation.levels()).await?;
    let load = shape.load(operation, 0);
    let found = find_peak(servers, &targets, &load).await?;
    // The best of several is luck as well: what counts is measured before and after.
    let before = Peak::measure(servers, &targets, &Load { clients: found.clients, ..load }).await?;
    let clients = (found.clients as f64 * TIMES_THE_PEAK) as usize;
    let crowded = observe(servers, &targets, &Load { clients, ..load }, async |_ends| Ok(())).await?;
    eprintln!("  {clients} clients: {:.0}/s", crowded.per_second());
    let rate = before.per_second * TIMES_THE_PEAK;
    drop(targets);
    let channels = servers.connections(shape.streams * NODES)?;
    let offered = offer(servers, channels, (&load, operation.levels()), rate).await?;
    let targets = streams(servers.connections(shape.streams * NODES)?, operation.levels()).await?;
    let peak = before.and(Peak::measure(servers, &targets, &Load { clients: found.clients, ..load }).await?);
    let Offered { counted, used } = offered;
    let Counted { offered, held_back, served, refused, failed, example } = counted;
    let per_second = |count: u64| count as f64 / used.time.as_secs_f64();
    let goodput = Goodput {
        operation,
        cores: cores.to_owned(),
        peak_clients: peak.clients,
        peak_per_second: peak.per_second,
        peak_p99_us: peak.p99_us,
        crowded_per_second: crowded.per_second(),
        crowded_p99_us: crowded.latency_us(0.99),
        offered_per_second: per_second(offered),
        held_back_per_second: per_second(held_back),
        served_per_second: per_second(served.len()),
        served_p99_us: served.value_at_quantile(0.99) as f64,
        refused_per_second: per_second(refused.len()),
        refused_p50_us: refused.value_at_quantile(0.5) as f64,
        refused_p99_us: refused.value_at_quantile(0.99) as f64,
        failed_per_second: per_second(failed),
        failed_example: example.map(|failed| failed.to_string()),
        clients_busy: used.own_share(),
        disturbance: used.disturbance().max(crowded.disturbance()).max(peak.disturbance),
    };
    eprintln!(
        "  {}: peak {:.0}/s with {} clients; of {:.0}/s offered {:.0}/s served, {:.0}/s refused",
        operation.name(),
        goodput.peak_per_second,
        goodput.peak_clients,
        goodput.offered_per_second,
        goodput.served_per_second,
        goodput.refused_per_second,
    );
    Ok(goodput)
}

#[derive(Debug, Clone, Copy)]
struct Peak {
    clients: usize,
    per_second: f64,
    p99_us: f64,
    disturbance: f64,
}

impl Peak {
    async fn measure(servers: &Servers, targets: &[Stream], load: &Load) -> Result<Self> {
        let sample = measure(servers, targets, load).await?;
        let (per_second, p99_us) = (sample.per_second(), sample.latency_us(0.99));
        eprintln!("  {} clients: {per_second:.0}/s, p99 {:.1} ms", load.clients, p99_us / 1e3);
        Ok(Self { clients: load.clients, per_second, p99_us, disturbance: sample.disturbance() })
    }

    /// Both taken together.
    fn and(self, other: Self) -> Self {
        Self {
            clients: self.clients,
            per_second: f64::midpoint(self.per_second, other.per_second),
            p99_us: f64::midpoint(self.p99_us, other.p99_us),
            disturbance: self.disturbance.max(other.disturbance),
        }
    }
}

async fn find_peak(servers: &Servers, targets: &[Stream], load: &Load) -> Result<Peak> {
    let mut points: Vec<Peak> = Vec::new();
    for clients in CLIENTS {
        points.push(Peak::measure(servers, targets, &Load { clients: *clients, ..*load }).await?);
        let rates: Vec<_> = points.iter().map(|point| point.per_second).collect();
        if is_saturated(&rates) {
            break;
        }
    }
    let highest = points.iter().copied().max_by(|one, other| one.per_second.total_cmp(&other.per_second));
    ensure!(highest.is_some_and(|peak| peak.per_second > 0.0), "the store has served nothing");
    highest.ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goodput(offered: f64, served: f64, refused: f64, failed: f64) -> Goodput {
        Goodput {
            operation: Operation::Get,
            cores: String::new(),
            peak_clients: 64,
            peak_per_second: 1_000.0,
            peak_p99_us: 0.0,
            crowded_per_second: served,
            crowded_p99_us: 0.0,
            offered_per_second: offered,
            held_back_per_second: 0.0,
            served_per_second: served,
            served_p99_us: 0.0,
            refused_per_second: refused,
            refused_p50_us: 0.0,
            refused_p99_us: 0.0,
            failed_per_second: failed,
            failed_example: None,
            clients_busy: 0.5,
            disturbance: 0.0,
        }
    }

    #[test]
    fn a_store_under_three_times_its_load_keeps_nine_tenths_of_its_goodput() {
        let check = |goodput: Goodput, missed: &[&str]| {
            let verdicts = goodput.verdicts();
            let missing = verdicts.iter().filter(|verdict| !verdict.is_met);
            let missing: Vec<_> = missing.map(|verdict| verdict.what.as_str()).collect();
            assert_eq!(missing.len(), missed.len(), "{missing:?}");
            missing.iter().zip(missed).for_each(|(what, word)| assert!(what.contains(word), "{what}"));
        };
        check(goodput(3_000.0, 900.0, 2_100.0, 0.0), &[]);
        check(goodput(3_000.0, 890.0, 2_110.0, 0.0), &["three times the clients", "three times the rate"]);
        check(goodput(1_500.0, 1_000.0, 500.0, 0.0), &["that were due"]);
        check(goodput(3_000.0, 1_000.0, 1_900.0, 100.0), &["anything else"]);
        check(Goodput { clients_busy: 1.0, ..goodput(3_000.0, 900.0, 2_100.0, 0.0) }, &["clients' share"]);
        let nothing = ["three times the clients", "three times the rate", "anything else"];
        check(goodput(3_000.0, 0.0, 0.0, 0.0), &nothing);
    }

    #[test]
    fn the_refused_share_is_of_all_that_was_answered() {
        assert_eq!(goodput(0.0, 100.0, 300.0, 0.0).refused_share(), 0.75);
        assert_eq!(goodput(0.0, 0.0, 0.0, 0.0).refused_share(), 0.0);
    }
}
