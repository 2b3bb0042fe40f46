//! Cores of their own for servers and clients: else clients that offer several times the load take what the servers
//! would have answered it with.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The lower half of what this process may use, and the rest; `None` if there is only one.
fn halves(cores: &[usize]) -> Option<(&[usize], &[usize])> {
    Some(cores.split_at(cores.len() / 2)).filter(|(lower, _)| !lower.is_empty())
}

/// Until it is dropped, this process runs on cores of its own.
pub(crate) struct Apart {
    all: CpuSet,
    /// What was done, for people.
    pub(crate) says: String,
}

impl Apart {
    /// Runs `start` so that the processes it starts stay on one half of the cores; the other half is for this one.
    pub(crate) fn from<T>(start: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let all = sched_getaffinity(None)?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
        let Some((servers, clients)) = halves(&cores) else {
            let says = "servers and clients share the only core".to_owned();
            return Ok((start()?, Self { all, says }));
        };
        let says = format!(
            "servers have {} of {} cores to themselves, clients the rest",
            servers.len(),
            cores.len()
        );
        pin(servers)?;
        let apart = Self { all, says };
        let started = start()?;
        pin(clients)?;
        Ok((started, apart))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _stays = sched_setaffinity(None, &self.all);
    }
}

/// This thread, and what it starts.
fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).context("cannot choose cores")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_never_get_more_than_half_and_clients_at_least_one() {
        assert_eq!(halves(&[0, 1]), Some((&[0][..], &[1][..])));
        assert_eq!(halves(&[2, 3, 7]), Some((&[2][..], &[3, 7][..])));
        assert_eq!(halves(&[5]), None);
        assert_eq!(halves(&[]), None);
    }
}
