//! The socket of an instance with `bind: unix`.
//!
//! The instance makes it, as its own user, in a folder of its own. To connect to it one has to be
//! able to write to it, and the proxy worker is another user. So as soon as the socket is there,
//! the manager gives it the worker's group and lets that write. The folder is the instance's, who
//! may put anything there: what is changed has to be a socket of the instance's user and nothing
//! that a link leads to.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::launch::Credentials;
use crate::manager::host::worker_user::worker_user;

/// The name of the socket in its folder.
const NAME: &str = "socket";

/// The pause between two looks at whether the socket is there. A worker looks as often.
const PAUSE: Duration = Duration::from_millis(10);

/// The permission to read and write, for the group.
const GROUP_ACCESS: u32 = 0o060;

/// Makes the folder of an instance that runs as this user, and returns where the socket is to be.
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

/// Lets workers connect as soon as the socket is there, unless the folder goes before. Must run
/// inside a `LocalSet`.
pub fn admit_worker(folder: &Path) {
    // A manager that is not root is the only user of all of this.
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
    // The file that was looked at, whatever has that name by now.
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
