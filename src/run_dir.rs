//! The run directory, which holds the sockets and the state of one running manager.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat, fchmod, fstat, lstat, stat};
use rustix::process::geteuid;

/// The name of the file that a running manager locks.
const LOCK: &str = "lock";

/// The name of the folder that holds a folder for the unix socket of each instance.
const INSTANCES: &str = "instances";

/// The permissions of a run directory that is for its user alone.
const PRIVATE: u32 = 0o700;

/// The permission bits that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why a run directory is not used: another user may have made it, or may change what is in it.
#[derive(Debug, thiserror::Error)]
pub enum RunDirFault {
    /// A link, in a folder where other users can make one.
    #[error("is a link, which another user may have made")]
    Link,
    /// The run directory of somebody else.
    #[error("belongs to user {owner}, not to user {own}")]
    OfAnother {
        /// The owner of the directory.
        owner: u32,
        /// The user of this process.
        own: u32,
    },
    /// Other users have the right to change the directory.
    #[error("can be changed by other users (mode {0:o})")]
    Open(u32),
    /// The directory cannot be looked at, for example because there is none.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Creates the run directory and locks it for this manager. The lock is held as long as the
/// returned file is open.
pub fn prepare(path: &Path) -> anyhow::Result<File> {
    let is_root = geteuid().is_root();
    let is_shared = is_in_shared_folder(path);
    // Where everyone may write, as in /tmp, a user's directory is for nobody else. Root's has to be
    // open: the instances of other users have their sockets there.
    let is_private = is_shared && !is_root;
    let mode = if is_private { PRIVATE } else { 0o755 };
    make_folder(path, mode)?;
    let in_words = |fault| {
        anyhow!(
            "the run directory {} {fault}; name another with --run-dir, or set XDG_RUNTIME_DIR",
            path.display()
        )
    };
    let folder = open(path, is_shared).map_err(in_words)?;
    let found = fstat(&folder).map_err(io::Error::from)?;
    judge(&found, is_shared, false).map_err(in_words)?;
    if is_private {
        fchmod(&folder, Mode::from_raw_mode(PRIVATE)).map_err(io::Error::from)?;
    }
    make_folder(&instances(path), 0o755)?;
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

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Checks that nobody else can have made the run directory, before a client trusts who answers
/// there. A directory of root is as good as an own one.
pub fn check(path: &Path) -> Result<(), RunDirFault> {
    let is_shared = is_in_shared_folder(path);
    if !is_shared {
        return Ok(());
    }
    let found = fstat(open(path, is_shared)?).map_err(io::Error::from)?;
    judge(&found, is_shared, true)
}

/// Returns true if users other than root and the own one can put something in the place of `path`.
fn is_in_shared_folder(path: &Path) -> bool {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parent = path.parent().and_then(|parent| stat(parent).ok());
    parent.is_some_and(|parent| {
        let is_safe = [0, geteuid().as_raw()].contains(&parent.st_uid);
        !is_safe || parent.st_mode & WRITABLE_BY_OTHERS != 0
    })
}

fn open(path: &Path, is_shared: bool) -> Result<OwnedFd, RunDirFault> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, is_shared);
    let is_link = || {
        let found = lstat(path).ok()?;
        Some(FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
    };
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match is_shared {
        true if is_link() == Some(true) => RunDirFault::Link,
        _ => RunDirFault::Io(error.into()),
    })
}

fn judge(found: &Stat, is_shared: bool, or_root: bool) -> Result<(), RunDirFault> {
    let (owner, own) = (found.st_uid, geteuid().as_raw());
    if owner != own && !(or_root && owner == 0) {
        return Err(RunDirFault::OfAnother { owner, own });
    }
    match is_shared && found.st_mode & WRITABLE_BY_OTHERS != 0 {
        true => Err(RunDirFault::Open(found.st_mode & 0o7777)),
        false => Ok(()),
    }
}

/// Returns the folder that holds a folder for the unix socket of each instance, and nothing else.
/// It is all that workers see of the run directory, so it must not be made anew while one runs.
pub fn instances(path: &Path) -> PathBuf {
    path.join(INSTANCES)
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

    /// Makes a folder in which everyone may put something, like /tmp.
    fn shared_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        folder
    }

    #[test]
    fn in_a_shared_folder_a_directory_is_its_users_alone() {
        let shared = shared_folder();
        let path = shared.path().join("run");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        drop(prepare(&path).unwrap());
        let of_its_user = if geteuid().is_root() { 0o755 } else { PRIVATE };
        assert_eq!(mode(), of_its_user);
        check(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(check(&path), Err(RunDirFault::Open(0o775))));
        assert!(prepare(&path).is_err());
    }

    #[test]
    fn in_a_shared_folder_a_link_is_not_followed() {
        let shared = shared_folder();
        let own = tempfile::tempdir().unwrap();
        let path = shared.path().join("run");
        std::os::unix::fs::symlink(own.path(), &path).unwrap();
        assert!(matches!(check(&path), Err(RunDirFault::Link)));
        let error = prepare(&path).unwrap_err().to_string();
        assert!(error.contains("is a link"), "{error}");
        assert_eq!(std::fs::read_dir(own.path()).unwrap().count(), 0);
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("run");
        std::os::unix::fs::symlink(own.path(), &link).unwrap();
        prepare(&link).unwrap();
        check(&link).unwrap();
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
