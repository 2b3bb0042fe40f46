//! What a data directory keeps of a node that it is not any more: one that has departed or was given up, or whose disk was
//! rolled back or is a copy.
//!
//! No node ever uses it again. It is kept for a person, who may have given up the wrong node, for as long as there is
//! room, and goes before it stands in the way of what is alive: so whoever asks what is free may count on its space.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::data_dir::AWAY;
use super::file::{self, DiskError};

/// How `st_blocks` counts, whatever the file system does.
const BLOCK_BYTES: u64 = 512;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAside {
    /// Of the disk.
    pub bytes: u64,
    pub since: SystemTime,
}

/// Until when it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// The use of the disk, in percent, from which it goes once a new node serves from this directory.
    pub soft_percent: u8,
    /// The same before.
    pub hard_percent: u8,
    /// How long it is kept where there is room.
    pub keep: Duration,
}

impl SetAside {
    /// What this data directory keeps, if it does.
    pub fn of(data_dir: &Path) -> Result<Option<Self>, DiskError> {
        let path = data_dir.join(AWAY);
        match fs::metadata(&path) {
            Ok(found) => {
                let since = found.modified().map_err(|error| DiskError::new("look at", &path, error))?;
                Ok(Some(Self { bytes: allocated(&path)?, since }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::new("look at", &path, error)),
        }
    }

    /// Why it has to go, if it has.
    pub fn obstacle(&self, keeping: Keeping, used_percent: u8, is_serving: bool) -> Option<&'static str> {
        let Keeping { soft_percent, hard_percent, keep } = keeping;
        let age = SystemTime::now().duration_since(self.since).unwrap_or_default();
        match is_serving {
            _ if used_percent >= hard_percent => Some("the disk is full"),
            true if used_percent >= soft_percent => Some("the disk is nearly full"),
            true if age >= keep => Some("it was kept for as long as it should be"),
            true | false => None,
        }
    }

    /// Removes what this data directory keeps. What a crash leaves of it is still kept, and still counted.
    pub fn remove(data_dir: &Path) -> Result<(), DiskError> {
        let path = data_dir.join(AWAY);
        fs::remove_dir_all(&path).map_err(|error| DiskError::new("remove", &path, error))?;
        file::sync_directory(data_dir)
    }
}

/// What a directory and all below it take of the disk.
fn allocated(path: &Path) -> Result<u64, DiskError> {
    let failed = |error| DiskError::new("look at", path, error);
    let found = fs::symlink_metadata(path).map_err(failed)?;
    let own = found.blocks() * BLOCK_BYTES;
    if !found.is_dir() {
        return Ok(own);
    }
    file::list(path)?.into_iter().try_fold(own, |sum, name| Ok(sum + allocated(&path.join(name))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPING: Keeping =
        Keeping { soft_percent: 90, hard_percent: 98, keep: Duration::from_secs(7 * 24 * 3_600) };

    #[test]
    fn it_goes_once_it_is_in_the_way_or_old_and_before_a_new_node_serves_only_from_a_full_disk() {
        let day = Duration::from_secs(24 * 3_600);
        for (days, used_percent, is_serving, goes) in [
            (0, 89, true, false),
            (0, 90, true, true),
            (6, 10, true, false),
            (8, 10, true, true),
            (8, 97, false, false),
            (0, 98, false, true),
        ] {
            let set_aside = SetAside { bytes: 1, since: SystemTime::now() - day * days };
            let obstacle = set_aside.obstacle(KEEPING, used_percent, is_serving);
            assert_eq!(obstacle.is_some(), goes, "{days} days, {used_percent} %, serving: {is_serving}");
        }
    }

    #[test]
    fn what_is_kept_is_counted_with_all_below_it_and_goes_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(SetAside::of(directory.path()).unwrap(), None);
        let below = directory.path().join(AWAY).join("engine");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("db"), vec![1; 1 << 20]).unwrap();
        let found = SetAside::of(directory.path()).unwrap().unwrap();
        assert!((1 << 20..2 << 20).contains(&found.bytes), "{}", found.bytes);
        SetAside::remove(directory.path()).unwrap();
        assert_eq!(SetAside::of(directory.path()).unwrap(), None);
    }
}
