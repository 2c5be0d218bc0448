//! The unix socket of an instance with `bind: unix`.
//!
//! # Theory of operation
//! The instance creates the socket as its own user, in a folder that is its own at first. The proxy
//! worker is another user, which may connect only if it can write to the socket. So as soon as the
//! socket exists, the manager admits it:
//!
//! 1. It takes the folder: the folder becomes root's, and only the worker's group may enter it.
//!    From here on, the instance can put nothing else in the place of its socket, such as a link to
//!    the socket of another service, and no other user can connect, whatever the mode of the socket
//!    is.
//! 2. It checks what is there now: a socket that the user of the instance has made. It follows no
//!    link.
//! 3. It gives the socket the worker's group and lets this group write.
//!
//! An instance gets no requests before that. When it is told to stop, the folder is given back, so
//! that it can remove its socket, as many programs do at their end: it has drained then, and no
//! worker connects to it any more.
//!
//! What the instance has made before, or opened, it can go on to fill. If the folder is a file
//! system of its own ([`super::socket_folders`]), that is little.
//!
//! If the manager ends between two of these steps, the next one begins again with the first.
//!
//! Without root, the instance, the manager and the workers run as the same user, so there is
//! nothing to admit.

use std::cell::Cell;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, openat};
use rustix::process::geteuid;

use super::remains;
use crate::launch::Credentials;
use crate::manager::host::mounts;
use crate::manager::host::worker_user::worker_user;

/// The file name of the socket.
const NAME: &str = "socket";

/// The pause between two checks whether the socket exists. A worker probes as often. A check
/// costs a few system calls, and only as long as the instance starts, so nothing is set up to be
/// notified.
const PAUSE: Duration = Duration::from_millis(10);

/// The permissions of the folder while it is the instance's own.
const OWN_MODE: u32 = 0o700;

/// The permissions of the folder while the worker's group may enter it.
const ADMITTED_MODE: u32 = 0o750;

/// The permissions of the folders above it.
const PARENTS_MODE: u32 = 0o755;

/// The permission bits that let the group read and write.
const GROUP_ACCESS: u32 = 0o060;

/// The folder of an instance's socket.
#[derive(Debug)]
pub struct SocketPlace {
    folder: SocketFolder,
    /// True from the moment when the instance is told to stop.
    given_back: Rc<Cell<bool>>,
}

/// The folder itself, and whose socket belongs in it.
#[derive(Debug, Clone)]
struct SocketFolder {
    path: PathBuf,
    /// The user of the instance.
    user: Uid,
}

impl SocketPlace {
    /// Creates the folder for the socket of an instance that runs as `user`, unless it exists.
    pub fn make(path: &Path, user: Option<&Credentials>) -> io::Result<SocketPlace> {
        DirBuilder::new()
            .recursive(true)
            .mode(PARENTS_MODE)
            .create(path)?;
        fs::set_permissions(path, Permissions::from_mode(OWN_MODE))?;
        if let Some(user) = user {
            chown(path, Some(user.uid), Some(user.gid))?;
        }
        let user = user.map(|user| user.uid);
        Ok(SocketPlace::again(path.to_owned(), user))
    }

    /// Takes over a folder that an earlier manager has made for an instance that runs as `user`.
    /// `None`: that manager has not noted it, and the folder belongs to the user.
    pub fn again(path: PathBuf, user: Option<u32>) -> SocketPlace {
        let owner = || rustix::fs::lstat(&path).ok().map(|found| found.st_uid);
        let user = user.or_else(owner).map_or(geteuid(), Uid::from_raw);
        SocketPlace {
            folder: SocketFolder { path, user },
            given_back: Rc::default(),
        }
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.folder.path
    }

    /// Returns the number of the user who owns the socket.
    pub fn user(&self) -> u32 {
        self.folder.user.as_raw()
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path.join(NAME)
    }

    /// Admits the socket as soon as it exists, and reports that, or what is there instead. Waits no
    /// longer once the instance is told to stop. Must run inside a `LocalSet`.
    pub fn admit(&self, report: impl Fn(Result<(), String>) + 'static) {
        let Some(worker) = worker_user() else {
            return report(Ok(()));
        };
        let folder = self.folder.clone();
        let given_back = self.given_back.clone();
        tokio::task::spawn_local(async move {
            while !given_back.get() {
                match folder.admit(worker.gid.as_raw()) {
                    Ok(()) => return report(Ok(())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        let socket = folder.path.join(NAME);
                        return report(Err(format!("{}: {error}", socket.display())));
                    }
                }
                if !folder.path.exists() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Gives the folder back to the instance, which may remove its socket. No worker may connect to
    /// the instance any more.
    pub fn give_back(&self) {
        if !self.given_back.replace(true)
            && let Err(error) = self.folder.give_back()
        {
            let folder = self.folder.path.display();
            tracing::debug!(error = %format!("{folder}: {error}"), "the instance cannot remove its socket");
        }
    }

    /// Removes the folder with all that the instance has left in it, in another thread if that may
    /// take long. `label` is the name of the instance, for a message if that fails. Must run inside
    /// a runtime.
    pub fn remove(&self, label: &str) {
        self.given_back.set(true);
        // A file system of its own goes with all that is in it.
        if mounts::unmount_all(&self.folder.path) && fs::remove_dir(&self.folder.path).is_ok() {
            return;
        }
        let (folder, label) = (self.folder.path.clone(), label.to_owned());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = remains::remove(&folder) {
                let error = format!("{}: {error}", folder.display());
                tracing::warn!(
                    instance = label,
                    error,
                    "cannot remove the folder of a socket"
                );
            }
        });
    }
}

impl SocketFolder {
    fn admit(&self, group: u32) -> io::Result<()> {
        // As long as there is nothing, the instance needs its folder.
        self.look()?;
        self.take(group)?;
        let checked = self.look().and_then(|socket| {
            let found = fstat(&socket)?;
            let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
            match is_socket && found.st_uid == self.user.as_raw() {
                true => Ok((socket, found.st_mode)),
                false => Err(io::Error::other("it is no socket of the instance")),
            }
        });
        let (socket, mode) = checked.or_else(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                // The instance has removed it again, and may make another one.
                self.give_back()?;
            }
            Err(error)
        })?;
        // This path refers to the file that was checked, even if another file has its name by now.
        let path = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        chown(&path, None, Some(group))?;
        let mode = Mode::from_raw_mode(mode).bits() | GROUP_ACCESS;
        fs::set_permissions(&path, Permissions::from_mode(mode))
    }

    /// Opens what has the name of the socket, without following or connecting.
    fn look(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(self.open()?, NAME, flags, Mode::empty())?)
    }

    /// Makes the folder root's, and lets only this group enter it.
    fn take(&self, group: u32) -> io::Result<()> {
        self.belong_to(geteuid(), Some(Gid::from_raw(group)), ADMITTED_MODE)
    }

    /// Makes the folder the instance's.
    fn give_back(&self) -> io::Result<()> {
        self.belong_to(self.user, None, OWN_MODE)
    }

    /// The mode is set in any case: the last owner may have permitted others to change the folder.
    fn belong_to(&self, user: Uid, group: Option<Gid>, mode: u32) -> io::Result<()> {
        let folder = self.open()?;
        fchown(&folder, Some(user), group)?;
        Ok(fchmod(&folder, Mode::from_raw_mode(mode))?)
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(CWD, &self.path, flags, Mode::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_socket_and_nothing_else_is_opened_to_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let place = SocketPlace::make(&folder.path().join("1"), None).unwrap();
        let (folder, socket) = (&place.folder, place.socket());
        let group = rustix::process::getegid().as_raw();
        let missing = folder.admit(group).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);

        let secret = place.path().join("secret");
        fs::write(&secret, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        symlink(&secret, &socket).unwrap();
        assert!(folder.admit(group).is_err());
        fs::remove_file(&socket).unwrap();
        fs::hard_link(&secret, &socket).unwrap();
        assert!(folder.admit(group).is_err());
        assert_eq!(mode(&secret), 0o600);
        fs::remove_file(&socket).unwrap();

        let _listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
        folder.admit(group).unwrap();
        assert_eq!(mode(&socket), 0o760);
        assert_eq!(mode(place.path()), 0o750);
        assert_eq!(fs::metadata(&socket).unwrap().gid(), group);
    }
}
