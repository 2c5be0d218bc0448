//! An entry: what is at a path that `watch_files` names, or in a folder there.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use crate::trust::{self, FileFault, FoundFile, Purpose};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    /// Nothing.
    Absent,
    /// A regular file.
    File(FileIdentity),
    /// A folder. What is in it has entries of its own.
    Folder,
    /// A symlink in a folder, with its target and the file there, if it is one.
    Link(PathBuf, Option<FileIdentity>),
    /// A socket, a device and the like, or something that cannot be looked at.
    Other,
}

/// The identity of a file, and whether its contents may have changed since.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    /// The time of modification, in seconds and nanoseconds.
    modified: (i64, i64),
}

/// The time of the last change of a file's status, in seconds and nanoseconds.
pub(super) type StatusTime = (i64, i64);

impl FileIdentity {
    /// Makes an identity of these numbers.
    #[cfg(test)]
    pub(super) fn of_numbers(
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
    ) -> FileIdentity {
        FileIdentity {
            device,
            inode,
            size,
            modified,
        }
    }
}

impl Entry {
    /// Looks at what a path leads to.
    pub(super) fn at(path: &Path) -> (Entry, StatusTime) {
        let found = trust::find(path, Purpose::Content(None));
        let changed = found.as_ref().map(|found| status_time(&found.stat));
        (Entry::of(&found), changed.unwrap_or_default())
    }

    /// Returns the entry of something that was found, or was not.
    pub(super) fn of(found: &Result<FoundFile, FileFault>) -> Entry {
        match found {
            Ok(found) => Entry::with(&found.stat),
            Err(fault) => Entry::without(fault),
        }
    }

    /// Returns the entry of something with this status.
    pub(super) fn with(stat: &Stat) -> Entry {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Entry::Folder,
            FileType::RegularFile => Entry::File(FileIdentity::from(stat)),
            _ => Entry::Other,
        }
    }

    /// Returns the entry of something that cannot be looked at.
    pub(super) fn without(fault: &FileFault) -> Entry {
        match fault.is_missing() {
            true => Entry::Absent,
            false => Entry::Other,
        }
    }

    /// Returns the entry of what a walk has come to, and the status time of the file, if it is one.
    pub(super) fn new(path: &Path, metadata: &Metadata) -> (Entry, StatusTime) {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        if metadata.is_dir() {
            (Entry::Folder, StatusTime::default())
        } else if metadata.is_file() {
            (Entry::File(FileIdentity::new(metadata)), changed)
        } else if metadata.is_symlink() {
            let target = path.read_link().unwrap_or_default();
            match Entry::at(path) {
                (Entry::File(identity), changed) => (Entry::Link(target, Some(identity)), changed),
                _ => (Entry::Link(target, None), StatusTime::default()),
            }
        } else {
            (Entry::Other, StatusTime::default())
        }
    }

    /// Returns the size of the file that this is or leads to.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Entry::File(identity) | Entry::Link(_, Some(identity)) => Some(identity.size),
            _ => None,
        }
    }
}

impl FileIdentity {
    fn new(metadata: &Metadata) -> FileIdentity {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl From<&Stat> for FileIdentity {
    fn from(stat: &Stat) -> FileIdentity {
        FileIdentity {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            modified: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
        }
    }
}

/// Returns when the status of a file was last changed.
pub(super) fn status_time(stat: &Stat) -> StatusTime {
    (stat.st_ctime, stat.st_ctime_nsec.cast_signed())
}
