//! Makes sled's syncs real: the `sync_file_range` of this binary is `fdatasync`.
//!
//! sled 0.34 on Linux makes its log durable with `sync_file_range`, which starts the writing of pages but flushes
//! neither metadata nor the disk's own cache: after a power cut, pages that sled took for synced are missing. It
//! calls the function through the C library's symbol, so defining that symbol here replaces it in every binary
//! that links this crate, statically or dynamically. A test proves that sled's calls arrive here.
//!
//! This is the one place of this crate with unsafe code.

use std::sync::atomic::{AtomicU64, Ordering};

use super::mutant::{Mutant, is_on};

static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often a file was synced through this function since the process started.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// `sync_file_range(2)` as far as its callers can tell, but durable: the whole file is synced.
#[allow(unsafe_code, reason = "replacing a symbol of the C library is what this module is for")]
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(
    fd: libc::c_int,
    _offset: libc::off64_t,
    _bytes: libc::off64_t,
    _flags: libc::c_uint,
) -> libc::c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    if is_on(Mutant::SledIsNotSynced) {
        return 0;
    }
    #[cfg(test)]
    if super::power::before_sync_of(fd).is_err() {
        return -1;
    }
    // SAFETY: fdatasync takes any number for a descriptor and fails with EBADF on one that is not open.
    unsafe { libc::fdatasync(fd) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_does_what_fdatasync_does() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let null = std::os::fd::AsRawFd::as_raw_fd(&file);
        // A device that cannot be synced, and no file at all.
        for (fd, error) in [(null, libc::EINVAL), (-1, libc::EBADF)] {
            assert_eq!(super::sync_file_range(fd, 0, 0, 0), -1);
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(error));
        }
    }
}
