//! The watches that the kernel has for this process (inotify), each of one folder.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{INotifyWatcher, RecursiveMode, Watcher as _};

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

/// The watches that the kernel has.
#[derive(Debug)]
pub(super) struct Kernel {
    notify: INotifyWatcher,
    /// The folders that are watched. `None`: something happened to the folder, and its watch may be
    /// gone.
    watched: BTreeMap<PathBuf, Option<FolderIdentity>>,
}

impl Kernel {
    /// Begins without any watch.
    pub(super) fn new(notify: INotifyWatcher) -> Kernel {
        Kernel {
            notify,
            watched: BTreeMap::new(),
        }
    }

    /// Watches a folder. Returns false if it is watched already.
    pub(super) fn watch(&mut self, folder: &Path, identity: FolderIdentity) -> io::Result<bool> {
        if self.watched.get(folder) == Some(&Some(identity)) {
            return Ok(false);
        }
        // Another folder may have been watched by that name; a watch goes with the folder, not with
        // its name.
        if self.watched.remove(folder).is_some() {
            let _ = self.notify.unwatch(folder);
        }
        let watched = self.notify.watch(folder, RecursiveMode::NonRecursive);
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
        let notify = &mut self.notify;
        self.watched.retain(|folder, _| {
            let keep = folders.contains_key(folder);
            if !keep {
                let _ = notify.unwatch(folder);
            }
            keep
        });
    }
}
