//! How full the disk under the data directory is.

use std::io::ErrorKind;
use std::path::Path;

use super::file::DiskError;

/// The space of one file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskUsage {
    /// What an unprivileged process could use of it at most, used or not.
    pub total: u64,
    /// What an unprivileged process may still use.
    pub available: u64,
}

impl DiskUsage {
    pub fn of(path: &Path) -> Result<Self, DiskError> {
        let found = rustix::fs::statvfs(path)
            .map_err(|error| DiskError::new("ask for the free space of", path, error.into()))?;
        // Blocks kept for the superuser are neither used nor available: they do not count at all, as in df.
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Ok(Self {
            total: (used + found.f_bavail).saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// Fails as writing so many bytes would, before any is written: what a write leaves that has found the disk full
    /// takes up its last space.
    pub(super) fn expect_available(path: &Path, bytes: u64) -> Result<(), DiskError> {
        let is_available = Self::of(path)?.available >= bytes;
        let full = || DiskError::new("find the space to write in", path, ErrorKind::StorageFull.into());
        is_available.then_some(()).ok_or_else(full)
    }

    /// Rounded up, as df does; a disk without any space is full.
    pub fn used_percent(self) -> u8 {
        let used = u128::from(self.total.saturating_sub(self.available)) * 100;
        let percent = used.div_ceil(u128::from(self.total).max(1));
        if self.total == 0 { 100 } else { u8::try_from(percent).unwrap_or(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_of_use_is_rounded_up() {
        for (total, available, percent) in
            [(100, 100, 0), (100, 0, 100), (1000, 999, 1), (u64::MAX, 1, 100), (0, 0, 100)]
        {
            assert_eq!(DiskUsage { total, available }.used_percent(), percent);
        }
    }

    #[test]
    fn the_disk_under_a_directory_has_space() {
        let usage = DiskUsage::of(&std::env::temp_dir()).unwrap();
        assert!(usage.total >= usage.available && usage.total > 0);
        DiskUsage::expect_available(&std::env::temp_dir(), 0).unwrap();
        let error = DiskUsage::expect_available(&std::env::temp_dir(), usage.total + 1).unwrap_err();
        assert!(error.is_no_space(), "{error}");
    }
}
