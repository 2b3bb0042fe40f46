//! What a process costs that nobody asks for anything.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::proc;

/// Of one process; of several, on the average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Idle {
    pub(crate) cpu_ms_per_minute: f64,
    pub(crate) resident_bytes: f64,
    pub(crate) disturbance: f64,
}

pub(crate) async fn watch(pids: &[u32], seconds: u64) -> Result<Idle> {
    let cpu = || pids.iter().map(|pid| proc::cpu_time(*pid)).sum::<Result<Duration>>();
    let own = || proc::cpu_time(std::process::id());
    let (begun, before, busy, mine) = (Instant::now(), cpu()?, proc::machine_busy()?, own()?);
    sleep(Duration::from_secs(seconds)).await;
    let (took, used) = (begun.elapsed(), cpu()?.saturating_sub(before));
    let others = (proc::machine_busy()? - busy).saturating_sub(used + (own()? - mine));
    let resident: u64 = pids.iter().map(|pid| proc::resident_bytes(*pid)).sum::<Result<_>>()?;
    Ok(Idle {
        cpu_ms_per_minute: ms_per_minute(used, took) / pids.len() as f64,
        resident_bytes: resident as f64 / pids.len() as f64,
        disturbance: others.as_secs_f64() / took.as_secs_f64(),
    })
}

fn ms_per_minute(used: Duration, took: Duration) -> f64 {
    used.as_secs_f64() * 1e3 * 60.0 / took.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_told_for_a_minute() {
        assert_eq!(ms_per_minute(Duration::from_millis(30), Duration::from_secs(20)), 90.0);
        assert_eq!(ms_per_minute(Duration::ZERO, Duration::from_secs(20)), 0.0);
    }
}
