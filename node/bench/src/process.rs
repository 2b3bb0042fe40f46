//! One server as a process, which may be stopped, killed, halted and started again. What it has used is counted over
//! all of its lives.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::proc;

/// A node with many records in memory writes them all down before it ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(600);

/// Ends with this.
pub(crate) struct Server {
    command: Command,
    home: PathBuf,
    child: Option<Child>,
    /// In earlier lives.
    cpu_before: Duration,
    written_before: u64,
    /// For clients.
    pub(crate) address: SocketAddr,
    /// For probes; etcd's is not asked for.
    pub(crate) http: Option<SocketAddr>,
}

impl Server {
    /// Runs, with a log in `home`, which has to exist.
    pub(crate) fn start(
        mut command: Command,
        home: &Path,
        (address, http): (SocketAddr, Option<SocketAddr>),
    ) -> Result<Self> {
        let log = File::create(home.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = Self {
            command,
            home: home.to_owned(),
            child: None,
            cpu_before: Duration::ZERO,
            written_before: 0,
            address,
            http,
        };
        server.start_again()?;
        Ok(server)
    }

    /// After it was stopped or killed.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let program = self.command.get_program().to_owned();
        let child = self.command.spawn();
        self.child = Some(child.with_context(|| format!("cannot start {}", program.display()))?);
        Ok(())
    }

    /// `None` while it does not run.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Tells it to stop, and returns how long that took.
    pub(crate) fn stop(&mut self) -> Result<Duration> {
        self.end(Signal::TERM)
    }

    pub(crate) fn kill(&mut self) -> Result<Duration> {
        self.end(Signal::KILL)
    }

    /// It keeps its connections and does nothing.
    pub(crate) fn halt(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub(crate) fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let now = self.pid().map(proc::cpu_time).transpose()?;
        Ok(self.cpu_before + now.unwrap_or_default())
    }

    pub(crate) fn written_bytes(&self) -> Result<u64> {
        let now = self.pid().map(proc::written_bytes).transpose()?;
        Ok(self.written_before + now.unwrap_or_default())
    }

    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        Ok(self.pid().map(proc::resident_bytes).transpose()?.unwrap_or_default())
    }

    /// Of its directory, log and all.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        proc::disk_bytes(&self.home)
    }

    /// An error with its last words, if it has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        ensure!(ended.is_none(), "a server has ended: {}", self.last_words());
        Ok(())
    }

    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
        log.lines().last().unwrap_or("its log is empty").to_owned()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.raw_pid()?, signal)?)
    }

    fn raw_pid(&self) -> Result<Pid> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).context("this server does not run")
    }

    /// What it has used is read when it has ended and nobody has waited for it yet: a moment before that would miss
    /// what it does to end.
    fn end(&mut self, signal: Signal) -> Result<Duration> {
        let begun = Instant::now();
        let pid = self.raw_pid()?;
        self.signal(signal)?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while waitid(WaitId::Pid(pid), look)?.is_none() {
            ensure!(begun.elapsed() < STOP_TIMEOUT, "a server does not stop: {}", self.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
        let took = begun.elapsed();
        (self.cpu_before, self.written_before) = (self.cpu_time()?, self.written_bytes()?);
        let status = self.child.take().context("this server does not run")?.wait()?;
        let told = signal == Signal::KILL || status.success();
        ensure!(told, "a server that was told to stop said {status}: {}", self.last_words());
        Ok(took)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Its data goes with it, and nobody waits for its last checkpoint.
            let _ended = child.kill();
            let _ended = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, home: &Path) -> Server {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Server::start(command, home, (SocketAddr::from(([127, 0, 0, 1], 1)), None)).unwrap()
    }

    fn wait(mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_server_has_used_is_counted_over_its_lives() {
        let home = tempfile::tempdir().unwrap();
        let mut server = shell("while :; do :; done", home.path());
        for life in 1..=2 {
            let before = server.cpu_time().unwrap();
            wait(|| server.cpu_time().unwrap() >= before + Duration::from_millis(50));
            server.kill().unwrap();
            assert_eq!(server.pid(), None);
            assert!(server.cpu_time().unwrap() >= Duration::from_millis(50 * life));
            server.start_again().unwrap();
        }
    }

    #[test]
    fn a_halted_server_does_nothing_until_it_may_go_on() {
        let home = tempfile::tempdir().unwrap();
        let server = shell("while :; do :; done", home.path());
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid().unwrap())).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next()
        };
        server.halt().unwrap();
        wait(|| state() == Some('T'));
        server.go_on().unwrap();
        wait(|| state() == Some('R'));
    }

    #[test]
    fn a_server_that_ends_badly_says_why() {
        let home = tempfile::tempdir().unwrap();
        let mut server = shell("echo no room; exit 3", home.path());
        let mut said = Ok(());
        wait(|| {
            said = server.check_alive();
            said.is_err()
        });
        assert!(said.unwrap_err().to_string().contains("no room"));
    }
}
