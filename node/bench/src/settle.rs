//! Waits until servers that were written to have done what they had put off: memtables, snapshots, cleaning.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use crate::servers::Servers;

/// What all servers together may write in a second and count as quiet.
const QUIET_BYTES: u64 = 64 << 10;
/// What CPU time all of them may use in a second.
const QUIET_CPU: Duration = Duration::from_millis(100);
const QUIET_SECONDS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(300);

/// Returns whether they have become quiet in time.
pub(crate) async fn settle(servers: &Servers) -> Result<bool> {
    let begun = Instant::now();
    let mut quiet = 0;
    while quiet < QUIET_SECONDS {
        if begun.elapsed() > TIMEOUT {
            eprintln!("  the servers are still at work after {TIMEOUT:?}");
            return Ok(false);
        }
        let before = (servers.written_bytes()?, servers.cpu_time()?);
        sleep(Duration::from_secs(1)).await;
        let written = servers.written_bytes()?.saturating_sub(before.0);
        let cpu = servers.cpu_time()?.saturating_sub(before.1);
        quiet = if is_quiet(written, cpu) { quiet + 1 } else { 0 };
    }
    Ok(true)
}

fn is_quiet(written: u64, cpu: Duration) -> bool {
    written <= QUIET_BYTES && cpu <= QUIET_CPU
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_computes_or_writes_is_not_quiet() {
        assert!(is_quiet(0, Duration::ZERO));
        assert!(is_quiet(QUIET_BYTES, QUIET_CPU));
        assert!(!is_quiet(QUIET_BYTES + 1, Duration::ZERO));
        assert!(!is_quiet(0, QUIET_CPU + Duration::from_millis(10)));
    }
}
