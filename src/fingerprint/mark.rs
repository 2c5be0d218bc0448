//! Marks: what is remembered of each part of a version, to see later whether the part is another
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::path::Path;

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::entry::status_time;

/// How the names of parts end that `args` name.
const OF_ARGUMENTS: &str = " (args)";

/// How the names of parts end that `watch_files` names.
const OF_WATCH_FILES: &str = " (watch_files)";

/// What is remembered of a file, or of all files in a folder.
///
/// The kernel changes a file's status time with every write, but also when somebody changes its
/// mode or makes a hard link to it, which is nothing that a service would see. So a changed status
/// time counts unless something shows that the contents are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The digest of the path, the inode, the size and the time of modification.
    pub(super) identity: u64,
    /// The digest of the status time.
    pub(super) changed: u64,
    /// The digest of what explains another status time: mode, owner, group and number of links.
    pub(super) attributes: Option<u64>,
    /// The digest of the contents, if they could be read.
    pub(super) contents: Option<u64>,
    /// The digest of the inode of the folder, if this is one, or if the program finds what it needs
    /// there. Earlier builds do not compare it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) folder: Option<u64>,
}

impl Mark {
    /// Makes the mark of something that has only an identity.
    pub(super) fn plain(identity: impl Hash) -> Mark {
        Mark {
            identity: digest(identity),
            changed: 0,
            attributes: None,
            contents: None,
            folder: None,
        }
    }

    /// Makes the mark of one file.
    pub(super) fn of(identity: impl Hash, stat: &Stat, contents: Option<u64>) -> Mark {
        let attributes = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink);
        Mark {
            identity: digest(identity),
            changed: digest(status_time(stat)),
            attributes: Some(digest(attributes)),
            contents,
            folder: None,
        }
    }

    /// Adds a folder to a mark: another folder under the same path is another one, whatever is in
    /// it.
    pub(super) fn in_folder(self, stat: &Stat) -> Mark {
        Mark {
            folder: Some(digest(stat.st_ino)),
            ..self
        }
    }

    fn is_same(&self, other: &Mark) -> bool {
        if self.identity != other.identity {
            return false;
        }
        let folders = self.folder.zip(other.folder);
        if folders.is_some_and(|(one, other)| one != other) {
            return false;
        }
        if self.changed == other.changed {
            return true;
        }
        match (self.contents, other.contents) {
            (Some(one), Some(other)) => one == other,
            _ => self
                .attributes
                .zip(other.attributes)
                .is_some_and(|(one, other)| one != other),
        }
    }
}

/// The parts of a version by name, such as `the executable` or `/srv/shop/config (watch_files)`.
/// They can be saved, and compared by another build of this program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    marks: BTreeMap<String, Mark>,
    /// The names of parts that could not be read to their end in time.
    unread: BTreeSet<String>,
}

impl Parts {
    /// Adds a part.
    pub(super) fn add(&mut self, name: impl Into<String>, mark: Mark) {
        self.marks.insert(name.into(), mark);
    }

    /// Adds a file that an argument names.
    pub(super) fn add_argument(&mut self, path: &Path, mark: Mark) {
        self.add(format!("{}{OF_ARGUMENTS}", path.display()), mark);
    }

    /// Adds a file or folder that `watch_files` names. `None`: it was not read to its end.
    pub(super) fn add_watched(&mut self, path: &Path, mark: Option<Mark>) {
        let name = format!("{}{OF_WATCH_FILES}", path.display());
        match mark {
            Some(mark) => self.add(name, mark),
            None => {
                self.unread.insert(name);
            }
        }
    }

    /// Returns true if all parts could be read to their end.
    pub fn are_complete(&self) -> bool {
        self.unread.is_empty()
    }

    /// Takes the parts that could not be read from a newer version that has them.
    pub fn complete(&mut self, newer: &Parts) {
        let Parts { marks, unread } = self;
        unread.retain(|name| match newer.marks.get(name) {
            Some(mark) => {
                marks.insert(name.clone(), *mark);
                false
            }
            None => true,
        });
    }

    /// Returns the names of the parts that are others in a newer version. What one of the two could
    /// not read, or an earlier build did not look at, is not compared.
    pub fn changes(&self, newer: &Parts) -> Vec<String> {
        let names = self.marks.keys().chain(newer.marks.keys());
        let names: BTreeSet<&String> = names.collect();
        let differs = |name: &&String| {
            if self.unread.contains(*name) || newer.unread.contains(*name) {
                return false;
            }
            match (self.marks.get(*name), newer.marks.get(*name)) {
                (Some(one), Some(other)) => !one.is_same(other),
                _ => true,
            }
        };
        names.into_iter().filter(differs).cloned().collect()
    }
}

/// Returns true if all of these changed parts are files that arguments name.
pub fn are_of_arguments(changes: &[String]) -> bool {
    !changes.is_empty() && changes.iter().all(|name| name.ends_with(OF_ARGUMENTS))
}

/// Returns a number that is the same for equal values, and by all likelihood only for them.
pub(super) fn digest(value: impl Hash) -> u64 {
    let mut hasher = Fnv::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The hash FNV-1a. The standard library's hashers promise nothing from one version to the next.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Returns the digest of bytes.
pub(super) fn digest_of_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = Fnv::default();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_status_time_counts_unless_the_contents_or_the_attributes_explain_it() {
        let mark = Mark {
            identity: 1,
            changed: 1,
            attributes: Some(1),
            contents: Some(1),
            folder: None,
        };
        let is_same = |other: Mark| mark.is_same(&other) && other.is_same(&mark);
        assert!(is_same(mark));
        assert!(!is_same(Mark {
            identity: 2,
            ..mark
        }));
        let touched = Mark { changed: 2, ..mark };
        assert!(is_same(touched));
        assert!(!is_same(Mark {
            contents: Some(2),
            ..touched
        }));
        let unread = Mark {
            contents: None,
            ..touched
        };
        assert!(!is_same(unread));
        assert!(is_same(Mark {
            attributes: Some(2),
            ..unread
        }));
        assert!(!is_same(Mark {
            attributes: None,
            ..unread
        }));
    }

    #[test]
    fn a_part_that_could_not_be_read_is_not_compared() {
        let root = std::path::Path::new("/view");
        let (mut one, mut other) = (Parts::default(), Parts::default());
        one.add_watched(root, Some(Mark::plain(1)));
        assert_eq!(one.changes(&other), ["/view (watch_files)"]);
        assert_eq!(other.changes(&one), ["/view (watch_files)"]);
        other.add_watched(root, None);
        assert!(one.changes(&other).is_empty() && other.changes(&one).is_empty());
        let mut later = other.clone();
        assert!(!later.are_complete());
        later.complete(&other);
        assert!(!later.are_complete());
        later.complete(&one);
        assert!(later.are_complete() && later == one);
        let saved = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Parts>(&saved).unwrap(), one);
    }
}
