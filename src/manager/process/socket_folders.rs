//! The folders for the unix sockets of all instances.
//!
//! # Theory of operation
//! An instance can write to its folder, at first by its path, and later through what it has opened
//! before. The run directory is on a file system that much else of the machine needs, and that
//! anybody could fill. So each folder gets a small file system of its own, if that can be: it is
//! full soon, and vanishes with the folder.
//!
//! It can be if the manager is root and under systemd, and the kernel permits it. Without systemd,
//! nobody would be left to unmount it if the manager was killed. Every worker has to see it, too. A
//! worker that an older build has started does not see what is mounted later, so the folders are
//! plain until it has ended.
//!
//! A folder that is there when the manager starts stays what it is. A folder that no instance needs
//! is removed, for example if the last manager has ended between making it and saving that.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::unix_socket::SocketPlace;
use crate::launch::Credentials;
use crate::manager::host::mounts;
use crate::tmpfs;

/// The options of an instance's file system, which is root's at first. A socket needs no space, and
/// the root folder counts as a file.
const OPTIONS: [(&str, &str); 4] = [
    ("source", "smoothserve"),
    ("size", "64k"),
    ("nr_inodes", "64"),
    ("mode", "0700"),
];

/// The folder that holds the folders.
#[derive(Debug)]
pub struct SocketFolders {
    folder: PathBuf,
    /// Namespaces that are made from now on get what is mounted in the folder later, or the reason
    /// why they do not.
    shared: Result<(), String>,
    workers_see_mounts: bool,
}

impl SocketFolders {
    /// Prepares `folder` for the folders of instances that may outlive the manager, or may not.
    pub fn new(folder: PathBuf, outlive: bool) -> SocketFolders {
        let shared = match outlive {
            true => mounts::share(&folder).map_err(|error| error.to_string()),
            false => Err("instances end with smoothserve".to_owned()),
        };
        SocketFolders {
            folder,
            shared,
            workers_see_mounts: true,
        }
    }

    /// Returns true if a worker that is started now sees what is mounted later.
    pub fn is_shared(&self) -> bool {
        self.shared.is_ok()
    }

    /// Takes in whether all workers see what is mounted later.
    pub fn seen_by_workers(&mut self, seen: bool) {
        self.workers_see_mounts = seen;
    }

    /// Makes the folder number `id` for the socket of an instance that runs as `user`.
    pub fn make(&self, id: u64, user: Option<&Credentials>) -> io::Result<SocketPlace> {
        let folder = self.path(id);
        if let Err(error) = self.mount_on(&folder) {
            tracing::debug!(%error, "the socket of an instance has no file system of its own");
        }
        SocketPlace::make(&folder, user)
    }

    fn mount_on(&self, folder: &Path) -> io::Result<()> {
        self.shared.clone().map_err(io::Error::other)?;
        if !self.workers_see_mounts {
            return Err(io::Error::other("an older worker would not see it"));
        }
        std::fs::create_dir_all(folder)?;
        Ok(tmpfs::mount(&tmpfs::make(&OPTIONS)?, folder)?)
    }

    /// Returns the numbers of the folders that are there.
    pub fn numbers(&self) -> BTreeSet<u64> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns the folder number `id`, which is there.
    pub fn place(&self, id: u64) -> SocketPlace {
        SocketPlace::again(self.path(id), None)
    }

    fn path(&self, id: u64) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Unmounts everything, when the last instance has ended.
    pub fn close(&self) {
        if self.is_shared() {
            mounts::unmount_all(&self.folder);
        }
    }
}
