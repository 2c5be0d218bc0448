//! The unix socket of an instance with `bind: unix`.
//!
//! The instance creates the socket as its own user, in its own folder. The proxy worker is another
//! user, which may connect only if it can write to the socket. So as soon as the socket exists, the
//! manager gives it the worker's group and lets this group write. The instance owns the folder and
//! may put anything there: the manager changes only a socket that belongs to the instance's user,
//! and never follows a link.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::launch::Credentials;
use crate::manager::host::worker_user::worker_user;

/// The file name of the socket.
const NAME: &str = "socket";

/// The pause between two checks whether the socket exists. A worker probes as often.
const PAUSE: Duration = Duration::from_millis(10);

/// The permission bits that let the group read and write.
const GROUP_ACCESS: u32 = 0o060;

/// Creates the folder for the socket of an instance that runs as `user`. Returns the path of the
/// socket.
pub fn make_place(folder: &Path, user: Option<&Credentials>) -> io::Result<PathBuf> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)?;
    if let Some(user) = user {
        chown(folder, Some(user.uid), Some(user.gid))?;
    }
    Ok(folder.join(NAME))
}

/// Lets workers connect as soon as the socket exists. Stops waiting if the folder is removed. Must
/// run inside a `LocalSet`.
pub fn admit_worker(folder: &Path) {
    // If the manager does not run as root, the instance and the workers run as the same user.
    let Some(worker) = worker_user() else { return };
    let folder = folder.to_owned();
    tokio::task::spawn_local(async move {
        loop {
            match admit(&folder, worker.gid.as_raw()) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::error!(unit = %folder.display(), error = %error, "the proxy cannot use the socket");
                    return;
                }
            }
            if !folder.exists() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}

fn admit(folder: &Path, group: u32) -> io::Result<()> {
    let owner = rustix::fs::stat(folder)?.st_uid;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket: OwnedFd = rustix::fs::open(folder.join(NAME), flags, Mode::empty())?;
    let found: Stat = rustix::fs::fstat(&socket)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket || found.st_uid != owner {
        return Err(io::Error::other("it is no socket of the instance"));
    }
    // This path refers to the file that was checked, even if another file has its name by now.
    let socket = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
    chown(&socket, None, Some(group))?;
    let mode = Mode::from_raw_mode(found.st_mode).bits() | GROUP_ACCESS;
    std::fs::set_permissions(&socket, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_socket_and_nothing_else_is_opened_to_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let place = make_place(&folder.path().join("1"), None).unwrap();
        let folder = place.parent().unwrap();
        let group = rustix::process::getegid().as_raw();
        let missing = admit(folder, group).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);

        let secret = folder.join("secret");
        std::fs::write(&secret, "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        symlink(&secret, &place).unwrap();
        assert!(admit(folder, group).is_err());
        std::fs::remove_file(&place).unwrap();
        std::fs::hard_link(&secret, &place).unwrap();
        assert!(admit(folder, group).is_err());
        assert_eq!(mode(&secret), 0o600);
        std::fs::remove_file(&place).unwrap();

        let _listener = UnixListener::bind(&place).unwrap();
        std::fs::set_permissions(&place, Permissions::from_mode(0o700)).unwrap();
        admit(folder, group).unwrap();
        assert_eq!(mode(&place), 0o760);
        assert_eq!(std::fs::metadata(&place).unwrap().gid(), group);
    }
}
