//! The watches that the kernel has for this process (inotify), each of one folder.
//!
//! To watch a folder asks its file system, which may hang, and the crate `notify` does that in the
//! one thread that also takes in all events. So each new watch is bounded
//! ([`crate::patience`]). If one hangs, its thread is left alone with the watches that it
//! has, and another one gets these anew.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use notify::{INotifyWatcher, RecursiveMode, Watcher as _};

use crate::patience;

/// Which folder is at a path: another one there has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FolderIdentity {
    device: u64,
    inode: u64,
}

impl FolderIdentity {
    /// Reads the identity of the folder at a path.
    pub(super) fn of(folder: &Path) -> io::Result<FolderIdentity> {
        let metadata = folder.symlink_metadata()?;
        Ok(FolderIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// Starts a thread of `notify`, whose events go where those of all others go.
type Begin = Box<dyn Fn() -> notify::Result<INotifyWatcher> + Send>;

/// The watches that the kernel has.
pub(super) struct Kernel {
    begin: Begin,
    /// The thread of `notify`. Whoever waits for it has the lock.
    notify: Arc<Mutex<INotifyWatcher>>,
    /// The folders that are watched. `None`: something happened to the folder, and its watch may be
    /// gone.
    watched: BTreeMap<PathBuf, Option<FolderIdentity>>,
    /// True: all watches were lost since this was last asked.
    lost: bool,
}

impl Kernel {
    /// Begins without any watch. Each thread of `notify` is started by `begin`.
    pub(super) fn new(begin: Begin) -> notify::Result<Kernel> {
        Ok(Kernel {
            notify: Arc::new(Mutex::new(begin()?)),
            begin,
            watched: BTreeMap::new(),
            lost: false,
        })
    }

    /// Watches a folder. Returns false if it is watched already.
    pub(super) fn watch(&mut self, folder: &Path, identity: FolderIdentity) -> io::Result<bool> {
        if self.watched.get(folder) == Some(&Some(identity)) {
            return Ok(false);
        }
        // Another folder may have been watched by that name; a watch goes with the folder, not with
        // its name.
        let is_stale = self.watched.remove(folder).is_some();
        let (notify, path) = (self.notify.clone(), folder.to_owned());
        let what = format!("{}, which is to be watched,", folder.display());
        let watched = patience::within(&what, move || {
            let mut notify = notify.lock().unwrap_or_else(PoisonError::into_inner);
            if is_stale {
                let _ = notify.unwatch(&path);
            }
            notify.watch(&path, RecursiveMode::NonRecursive)
        });
        let watched = watched.map_err(|unanswered| {
            self.replace_if_stuck();
            io::Error::other(unanswered)
        })?;
        watched.map_err(|error| match error.kind {
            notify::ErrorKind::Io(error) => error,
            notify::ErrorKind::PathNotFound => io::ErrorKind::NotFound.into(),
            notify::ErrorKind::MaxFilesWatch => {
                io::Error::other("no watches left, see /proc/sys/fs/inotify/max_user_watches")
            }
            _ => io::Error::other(error),
        })?;
        self.watched.insert(folder.to_owned(), Some(identity));
        Ok(true)
    }

    /// Returns true if all watches were lost since the last call.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Takes another thread if the one of `notify` hangs. The old one ends when it is answered.
    fn replace_if_stuck(&mut self) {
        if !matches!(self.notify.try_lock(), Err(TryLockError::WouldBlock)) {
            return;
        }
        match (self.begin)() {
            Ok(notify) => {
                tracing::warn!("a file system does not answer, all files are watched anew");
                self.notify = Arc::new(Mutex::new(notify));
                self.watched.clear();
                self.lost = true;
            }
            // Each further folder fails as well, and is looked at regularly.
            Err(error) => tracing::error!(error = %error, "cannot watch files anew"),
        }
    }

    /// Notes that what was at a path may be gone; `notify` then gives up the watches below it by
    /// itself.
    pub(super) fn doubt(&mut self, path: &Path) {
        let below = self.watched.range_mut(path.to_owned()..);
        for (_, identity) in below.take_while(|(folder, _)| folder.starts_with(path)) {
            *identity = None;
        }
    }

    /// Ends the watches of all folders that are not in `folders`.
    pub(super) fn keep<V>(&mut self, folders: &HashMap<PathBuf, V>) {
        // What hangs is left alone.
        let Ok(mut notify) = self.notify.try_lock() else {
            return;
        };
        self.watched.retain(|folder, _| {
            let keep = folders.contains_key(folder);
            if !keep {
                let _ = notify.unwatch(folder);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_hangs_is_left_alone_and_all_others_are_watched_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let identity = FolderIdentity::of(&folder).unwrap();
            (folder, identity)
        };
        let (good, hanging) = (folder("good"), folder("hanging"));
        let (sender, events) = std::sync::mpsc::channel::<notify::Result<notify::Event>>();
        let config = notify::Config::default();
        let begin = move || INotifyWatcher::new(sender.clone(), config);
        let mut kernel = Kernel::new(Box::new(begin)).unwrap();
        assert!(kernel.watch(&good.0, good.1).unwrap());
        assert!(!kernel.watch(&good.0, good.1).unwrap());
        patience::hurry();
        let stuck = kernel.notify.clone();
        let stuck = stuck.lock().unwrap();
        let error = kernel.watch(&hanging.0, hanging.1).unwrap_err().to_string();
        assert!(
            error.contains("hanging, which is to be watched, did not answer"),
            "{error}"
        );
        assert!(kernel.take_lost() && !kernel.take_lost());
        patience::renew();
        assert!(kernel.watch(&good.0, good.1).unwrap(), "it is watched anew");
        std::fs::write(good.0.join("file"), "").unwrap();
        let file = good.0.join("file");
        assert!(
            events
                .iter()
                .any(|event| event.unwrap().paths.contains(&file))
        );
        // It still hangs, and takes no further thread.
        assert!(kernel.watch(&hanging.0, hanging.1).is_err());
        assert!(!kernel.take_lost());
        drop(stuck);
    }
}
