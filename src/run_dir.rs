//! The run directory, which holds the sockets and the state of one running manager.

use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

/// The name of the file that a running manager locks.
const LOCK: &str = "lock";

/// Creates the run directory and locks it for this manager. The lock is held as long as the
/// returned file is open.
pub fn prepare(path: &Path) -> anyhow::Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .with_context(|| format!("cannot make the run directory {}", path.display()))?;
    let owner = std::fs::metadata(path)?.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner != own {
        bail!(
            "the run directory {} belongs to user {owner}, not to user {own}",
            path.display()
        );
    }
    let lock_path = path.join(LOCK);
    // Another user who can open the file could lock it and keep smoothserve from starting.
    let mode = Permissions::from_mode(0o600);
    let lock = File::create(&lock_path)
        .and_then(|lock| lock.set_permissions(mode).map(|()| lock))
        .with_context(|| format!("cannot write {}", lock_path.display()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "smoothserve is already running with the run directory {}",
                path.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
    }
}

/// Returns true if a manager holds the lock of the run directory. Two simpler ways would not do:
/// connecting to the manager's socket makes systemd start a manager, and trying the lock could make
/// a manager that starts at the same moment fail.
pub fn is_taken(path: &Path) -> bool {
    let (Ok(file), Ok(locks)) = (
        std::fs::metadata(path.join(LOCK)),
        std::fs::read_to_string("/proc/locks"),
    ) else {
        return false;
    };
    locks.lines().any(|line| is_of(line, file.ino()))
}

/// Returns true if this line of proc_locks(5) is an exclusive lock of the file with this inode. The
/// device is not compared, because the kernel shows a device number there that stat(2) does not
/// report for some file systems.
fn is_of(line: &str, inode: u64) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", _, file, ..] = words.as_slice() else {
        return false;
    };
    file.rsplit(':').next() == Some(inode.to_string().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_as_long_as_its_manager_lives() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_taken(folder.path()));
        let manager = prepare(folder.path()).unwrap();
        assert!(is_taken(folder.path()));
        drop(manager);
        assert!(!is_taken(folder.path()));
    }

    #[test]
    fn a_lock_is_known_by_its_kind_and_file() {
        const HELD: &str = "12: FLOCK  ADVISORY  WRITE 1107 00:1a:2284 0 EOF";
        assert!(is_of(HELD, 2284));
        assert!(!is_of(HELD, 228));
        assert!(!is_of(
            "12: POSIX  ADVISORY  WRITE 1107 00:1a:2284 0 EOF",
            2284
        ));
        assert!(!is_of(
            "12: -> FLOCK  ADVISORY  WRITE 1108 00:1a:2284 0 EOF",
            2284
        ));
    }
}
