//! The fingerprint of a service: the state of its files on disk, in a form that can be compared
//! with their state when its instances started.
//!
//! A fingerprint says that a file is another one, not what is in it: device, inode, size and time
//! of modification. The time of the last *status* change is left out on purpose: a `chmod`, a new
//! hard link or a backup changes it, but nothing that a service would see. Two things besides the
//! file itself matter for an executable:
//!
//! * the path that it resolves to, since `current/shop` may lead to another folder by a flipped
//!   symlink even where both folders hold hard links to one file;
//! * its owner, as whom it may run, and whether it can be executed at all: `chmod +x` mends a
//!   deploy that forgot it.
//!
//! A missing file is part of a fingerprint too, so a file that appears later is a change. The
//! environment file is compared by its contents; it is small, and editors and tools rewrite it
//! without changing anything.

mod walk;

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use crate::config::{ProcessConfig, ServiceConfig};
use crate::trust::{self, FileFault, FoundFile, Purpose};

pub(crate) use walk::{MAX_ENTRIES, walk};

/// The most changed files that are named.
const NAMED: usize = 3;

/// The files of a service at one moment. If two fingerprints are equal, nothing has changed in
/// between.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    executable: Executable,
    environment_file: Option<Contents>,
    /// Everything that `watch_files` stands for, by path.
    watched: Arc<BTreeMap<PathBuf, Entry>>,
}

/// The executable of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Executable {
    /// The path with all symlinks resolved.
    path: Option<PathBuf>,
    entry: Entry,
    owner: Option<u32>,
    can_be_executed: bool,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry {
    Absent,
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
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    /// The time of modification, in seconds and nanoseconds.
    modified: (i64, i64),
}

/// The contents of a small file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Contents {
    Absent,
    /// The length and a hash of the contents, which may hold secrets.
    Bytes {
        length: u64,
        hash: u64,
    },
    Unreadable,
}

impl Fingerprint {
    /// Takes the fingerprint of a service. This reads folders: with large `watch_files` it takes a
    /// while.
    pub fn take(service: &ServiceConfig) -> Fingerprint {
        let mut watched = BTreeMap::new();
        let mut budget = MAX_ENTRIES;
        for root in &service.watch_files {
            // Whoever could have put this there must not learn by it what root alone may see.
            trust::on_behalf(root, || {
                walk(root, &mut budget, &mut |path, metadata| {
                    watched.insert(path.to_owned(), Entry::new(path, metadata));
                });
            });
            watched
                .entry(root.clone())
                .or_insert_with(|| Entry::at(root));
        }
        let process = &service.process;
        Fingerprint {
            executable: Executable::take(process),
            environment_file: process
                .environment_file
                .as_ref()
                .map(|_| Contents::take(process)),
            watched: Arc::new(watched),
        }
    }

    /// Returns a number that is the same for equal fingerprints, and by all likelihood only for
    /// them. It can be kept where the fingerprint is too large, and compared by another build of
    /// this program.
    pub fn digest(&self) -> u64 {
        let mut hasher = Fnv::default();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Says for people what is different in a newer fingerprint: `the executable`,
    /// `the environment file`, `config/shop.toml`. Empty if nothing is.
    pub fn describe_change(&self, newer: &Fingerprint) -> String {
        let mut changes = Vec::new();
        if self.executable != newer.executable {
            changes.push("the executable".to_owned());
        }
        if self.environment_file != newer.environment_file {
            changes.push("the environment file".to_owned());
        }
        let gone = self
            .watched
            .iter()
            .filter(|(path, entry)| newer.watched.get(*path) != Some(entry));
        let new = newer
            .watched
            .keys()
            .filter(|path| !self.watched.contains_key(*path));
        let mut paths: Vec<&PathBuf> = gone.map(|(path, _)| path).chain(new).collect();
        paths.sort();
        for path in paths.iter().take(NAMED) {
            changes.push(path.display().to_string());
        }
        if paths.len() > NAMED {
            changes.push(format!("{} more files", paths.len() - NAMED));
        }
        changes.join(", ")
    }
}

impl Executable {
    fn take(process: &ProcessConfig) -> Executable {
        let found = trust::find(&process.executable, Purpose::Program(process.named_user()));
        let entry = Entry::of(&found);
        let found = found.ok();
        let stat = found.as_ref().map(|found| found.stat);
        Executable {
            entry,
            owner: stat.map(|stat| stat.st_uid),
            can_be_executed: stat.is_some_and(|stat| stat.st_mode & 0o111 != 0),
            path: found.map(|found| found.path),
        }
    }
}

impl Entry {
    /// Looks at what a path leads to.
    fn at(path: &Path) -> Entry {
        Entry::of(&trust::find(path, Purpose::Content(None)))
    }

    fn of(found: &Result<FoundFile, FileFault>) -> Entry {
        match found {
            Ok(found) => match FileType::from_raw_mode(found.stat.st_mode) {
                FileType::Directory => Entry::Folder,
                FileType::RegularFile => Entry::File(FileIdentity::from(&found.stat)),
                _ => Entry::Other,
            },
            Err(fault) if fault.is_missing() => Entry::Absent,
            Err(_) => Entry::Other,
        }
    }

    fn new(path: &Path, metadata: &Metadata) -> Entry {
        if metadata.is_dir() {
            Entry::Folder
        } else if metadata.is_file() {
            Entry::File(FileIdentity::new(metadata))
        } else if metadata.is_symlink() {
            let target = path.read_link().unwrap_or_default();
            let file = match Entry::at(path) {
                Entry::File(identity) => Some(identity),
                _ => None,
            };
            Entry::Link(target, file)
        } else {
            Entry::Other
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

impl Contents {
    fn take(process: &ProcessConfig) -> Contents {
        match process.read_environment_file() {
            Ok(Some(text)) => {
                let mut hasher = Fnv::default();
                hasher.write(text.as_bytes());
                Contents::Bytes {
                    length: text.len() as u64,
                    hash: hasher.finish(),
                }
            }
            Ok(None) => Contents::Absent,
            Err(fault) if fault.is_missing() => Contents::Absent,
            Err(_) => Contents::Unreadable,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A service whose executable is `current/app` and that watches `current/config` and
    /// `current/view`.
    struct Place {
        dir: tempfile::TempDir,
        service: ServiceConfig,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for release in ["1", "2"] {
                fs::create_dir_all(path(release).join("view/deep")).unwrap();
                fs::write(path(release).join("app"), "app").unwrap();
                fs::set_permissions(path(release).join("app"), PermissionsExt::from_mode(0o755))
                    .unwrap();
            }
            symlink("1", path("current")).unwrap();
            fs::create_dir_all(path("conf/services")).unwrap();
            let file = format!(
                "name: x\nport: 80\nexecutable_path: {}\n\
                 watch_files: [config, view]\nenvironment_file: -../../env\n",
                path("current/app").display()
            );
            fs::write(path("conf/services/x.yaml"), file).unwrap();
            let config = crate::config::load(&path("conf")).unwrap();
            let service = ServiceConfig::clone(&config.services["x"]);
            Place { dir, service }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// What has changed after something was done.
        fn change(&self, act: impl FnOnce()) -> String {
            let before = Fingerprint::take(&self.service);
            assert_eq!(before, Fingerprint::take(&self.service));
            act();
            let after = Fingerprint::take(&self.service);
            let change = before.describe_change(&after);
            assert_eq!(change.is_empty(), before == after, "{change}");
            change.replace(&format!("{}/", self.dir.path().display()), "")
        }
    }

    #[test]
    fn a_new_executable_is_seen() {
        let place = Place::new();
        let app = place.path("1/app");
        assert_eq!(
            place.change(|| fs::write(&app, "other").unwrap()),
            "the executable"
        );
        let replace = || {
            fs::write(place.path("new"), "other").unwrap();
            fs::rename(place.path("new"), &app).unwrap();
        };
        assert_eq!(place.change(replace), "the executable");
        assert_eq!(
            place.change(|| fs::remove_file(&app).unwrap()),
            "the executable"
        );
        assert_eq!(
            place.change(|| fs::write(&app, "x").unwrap()),
            "the executable"
        );
    }

    #[test]
    fn a_flipped_symlink_is_seen_even_if_it_leads_to_the_same_file() {
        let place = Place::new();
        fs::remove_file(place.path("2/app")).unwrap();
        fs::hard_link(place.path("1/app"), place.path("2/app")).unwrap();
        let flip = || {
            symlink("2", place.path("next")).unwrap();
            fs::rename(place.path("next"), place.path("current")).unwrap();
        };
        assert_eq!(place.change(flip), "the executable");
    }

    #[test]
    fn what_changes_nothing_for_the_service_is_no_change() {
        let place = Place::new();
        let app = place.path("1/app");
        let mode = |mode| fs::set_permissions(&app, PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(place.change(|| mode(0o700)), "");
        assert_eq!(
            place.change(|| fs::hard_link(&app, place.path("link")).unwrap()),
            ""
        );
        assert_eq!(
            place.change(|| fs::write(place.path("1/other"), "").unwrap()),
            ""
        );
        assert_eq!(place.change(|| mode(0o600)), "the executable");
        assert_eq!(place.change(|| mode(0o755)), "the executable");
    }

    #[test]
    fn the_environment_file_is_compared_by_contents() {
        let place = Place::new();
        let env = place.path("env");
        let write = |text: &str| fs::write(&env, text).unwrap();
        assert_eq!(place.change(|| write("A=1")), "the environment file");
        assert_eq!(place.change(|| write("A=1")), "");
        assert_eq!(place.change(|| write("A=2")), "the environment file");
        assert_eq!(
            place.change(|| fs::remove_file(&env).unwrap()),
            "the environment file"
        );
    }

    #[test]
    fn files_that_appear_later_and_deep_in_folders_are_seen() {
        let place = Place::new();
        let config = place.path("1/config");
        assert_eq!(
            place.change(|| fs::write(&config, "a").unwrap()),
            "current/config"
        );
        let deep = place.path("1/view/deep/page.html");
        assert_eq!(
            place.change(|| fs::write(&deep, "a").unwrap()),
            "current/view/deep/page.html"
        );
        assert_eq!(
            place.change(|| fs::write(&deep, "ab").unwrap()),
            "current/view/deep/page.html"
        );
        let many = || {
            for number in 0..5 {
                fs::write(place.path(&format!("1/view/{number}")), "").unwrap();
            }
        };
        let expected = "current/view/0, current/view/1, current/view/2, 2 more files";
        assert_eq!(place.change(many), expected);
        let all = place.change(|| fs::remove_dir_all(place.path("1/view")).unwrap());
        assert!(all.starts_with("current/view, current/view/0, "), "{all}");
    }

    #[test]
    fn symlinks_in_folders_are_followed_to_files_and_never_in_circles() {
        let place = Place::new();
        symlink("..", place.path("1/view/circle")).unwrap();
        fs::write(place.path("target"), "a").unwrap();
        let link = || symlink("../../target", place.path("1/view/target")).unwrap();
        assert_eq!(place.change(link), "current/view/target");
        let write = || fs::write(place.path("target"), "ab").unwrap();
        assert_eq!(place.change(write), "current/view/target");
    }
}
