//! What Linux says of processes and of the machine, from `/proc`, and of what lies on its disks.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What `/proc` counts times in, whatever the kernel's own clock is (USER_HZ of x86 and ARM is 100).
const MS_PER_TICK: u64 = 10;

/// CPU time, user and system, of a process with all its threads.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may hold anything; the fields behind it are numbered from 3.
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let field =
        |number: usize| fields.split_whitespace().nth(number - 3).and_then(|field| field.parse().ok());
    let ticks: u64 =
        field(14).zip(field(15)).map(|(user, system): (u64, u64)| user + system).context("no times")?;
    Ok(of_ticks(ticks))
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().next().and_then(|kib| kib.parse().ok()).context("no number")?;
    Ok(kib << 10)
}

/// What the process has caused to be written to disks.
pub(crate) fn written_bytes(pid: u32) -> Result<u64> {
    let io = read(&format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
    Ok(line.trim().parse()?)
}

/// CPU time that the machine has spent on anything, all cores together.
pub(crate) fn machine_busy() -> Result<Duration> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no cpu line")?;
    let times: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests get is in user already.
    let busy = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|field| times.get(field)).sum();
    Ok(of_ticks(busy))
}

/// The blocks that a directory and all below it take up. What goes away meanwhile is not counted.
pub(crate) fn disk_bytes(path: &Path) -> Result<u64> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        metadata => metadata.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Each connection takes one, and the limit that programs start with is meant for few.
pub(crate) fn raise_open_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("cannot raise the limit of open files")
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * MS_PER_TICK)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_some_and_the_machine_more() {
        let me = std::process::id();
        let begun = cpu_time(me).unwrap();
        let mut number = 1_u64;
        while cpu_time(me).unwrap() < begun + Duration::from_millis(30) {
            number = std::hint::black_box(number.wrapping_mul(31));
        }
        assert!(machine_busy().unwrap() > begun);
        assert!(resident_bytes(me).unwrap() > 100 << 10);
        assert!(written_bytes(me).is_ok());
        assert!(cpu_time(u32::MAX).is_err());
    }

    #[test]
    fn a_directory_takes_up_what_its_files_do() {
        let directory = tempfile::tempdir().unwrap();
        let empty = disk_bytes(directory.path()).unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        let file = fs::File::create(directory.path().join("below/file")).unwrap();
        std::io::Write::write_all(&mut &file, &[7; 100_000]).unwrap();
        file.sync_all().unwrap();
        assert!(disk_bytes(directory.path()).unwrap() >= empty + 100_000);
        assert_eq!(disk_bytes(&directory.path().join("gone")).unwrap(), 0);
    }
}
