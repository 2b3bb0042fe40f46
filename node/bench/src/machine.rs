//! What the figures were measured on and with. Nothing that names a host.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::servers::Programs;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Of the data directory.
    pub(crate) file_system: String,
    /// What the node says of its version.
    pub(crate) node: String,
}

impl Machine {
    pub(crate) fn of(programs: &Programs) -> Result<Self> {
        fs::create_dir_all(&programs.data)?;
        let data = programs.data.canonicalize()?;
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: cpu_model(&cpus).unwrap_or("unknown").to_owned(),
            memory_bytes: memory_bytes(&memory).context("no MemTotal in /proc/meminfo")?,
            kernel: format!("Linux {}", rustix::system::uname().release().to_string_lossy()),
            file_system: file_system(&mounts, &data).unwrap_or("unknown").to_owned(),
            node: version(&programs.node)?,
        })
    }
}

/// The first line that a program says of its version.
pub(crate) fn version(program: &Path) -> Result<String> {
    let said = Command::new(program).arg("--version").output();
    let said = said.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(said.status.success(), "{} does not say its version", program.display());
    Ok(String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned())
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The type of the file system that is mounted nearest above a path. Of two at one place the later one is seen.
fn file_system<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a str> {
    let mount = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let point = Path::new(before.split_whitespace().nth(4)?);
        let kind = after.split_whitespace().next()?;
        path.starts_with(point).then(|| (point.components().count(), kind))
    };
    mountinfo.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_on_what_is_mounted_nearest_above_it() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      23 22 0:5 / /data rw - xfs /dev/sdb rw\n\
                      24 23 0:6 / /data/fast rw - tmpfs tmpfs rw\n\
                      25 23 0:7 / /data/fast rw - btrfs /dev/sdc rw\n";
        let check = |path: &str, kind| assert_eq!(file_system(mounts, Path::new(path)), Some(kind), "{path}");
        check("/home", "ext4");
        check("/data/base", "xfs");
        check("/database", "ext4");
        check("/data/fast/store", "btrfs");
        assert_eq!(file_system("", Path::new("/")), None);
    }

    #[test]
    fn what_linux_says_of_the_machine_is_found() {
        let cpus =
            "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\n\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(cpu_model(cpus), Some("Some CPU @ 2.00GHz"));
        assert_eq!(cpu_model("processor : 0\n"), None);
        assert_eq!(memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(memory_bytes("MemFree: 1 kB\n"), None);
    }
}
