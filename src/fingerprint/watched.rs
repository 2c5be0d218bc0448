//! What `watch_files` stands for: files, and folders with all that is in them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::contents::digest_of;
use super::effort::Effort;
use super::entry::{Entry, StatusTime};
use super::mark::{Mark, Parts, digest};
use crate::config::ServiceConfig;
use crate::trust::{self, Purpose};
use crate::walk::{MOST_WATCHED, StopReason, Visited, WalkBounds, walk};

/// The most files and folders of a service that are compared. A reload sees more than is watched.
const MOST_COMPARED: usize = 200_000;

/// The most files of a service whose contents are read.
const MOST_READ: usize = 2_000;

/// The largest of these files.
const LARGEST_READ: u64 = 64 << 10;

/// The files by which package managers know what they have installed in a folder that is ignored.
const LOCK_FILES: &[&str] = &[
    ".package-lock.json",
    ".modules.yaml",
    ".yarn-integrity",
    ".yarn-state.yml",
];

/// The name of folders that programs themselves make while they run, so they are no part of a
/// version.
const MADE_BY_PROGRAMS: &str = "__pycache__";

/// What is at the paths of a service's `watch_files`, and in the folders there.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Everything, by path.
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    /// True: these are exactly the entries that earlier versions have compared.
    pub(super) is_as_ever: bool,
    /// What people should know about it.
    pub(super) remarks: Vec<String>,
}

/// A file that was found at a path of `watch_files` or in a folder there.
struct Found {
    path: PathBuf,
    entry: Entry,
    changed: StatusTime,
}

impl Watched {
    /// Looks at all files, and adds a part for each path of `watch_files`.
    pub(super) fn take(service: &ServiceConfig, effort: Effort, parts: &mut Parts) -> Watched {
        let mut watched = Watched {
            is_as_ever: true,
            ..Watched::default()
        };
        let mut bounds = WalkBounds {
            until: Some(effort.walks_until),
            ..WalkBounds::entries(MOST_COMPARED)
        };
        let mut reads = MOST_READ;
        for root in &service.watch_files {
            watched.take_root(service, root, &mut bounds, (effort, &mut reads), parts);
        }
        let count = MOST_COMPARED - bounds.entries.min(MOST_COMPARED);
        let is_complete = bounds.stopped.is_none();
        watched.is_as_ever &= is_complete && count <= MOST_WATCHED;
        if let Some(stop) = bounds.stopped {
            let at = stop.at.display();
            let most = match stop.why {
                StopReason::Entries => format!("{MOST_COMPARED} files and folders are compared"),
                why @ (StopReason::Depth | StopReason::Time) => why.to_string(),
            };
            watched.remarks.push(format!(
                "watch_files: a reload does not see changes of {at} and what follows, because no \
                 more than {most}; name what is not part of the service in watch_ignore"
            ));
        }
        if service.auto_restart && is_complete && count > MOST_WATCHED {
            watched.remarks.push(format!(
                "watch_files: of {count} files and folders, {MOST_WATCHED} are watched; the others \
                 are looked at every minute and at a reload; name what is not part of the service \
                 in watch_ignore"
            ));
        }
        watched
    }

    fn take_root(
        &mut self,
        service: &ServiceConfig,
        root: &Path,
        bounds: &mut WalkBounds,
        (effort, reads): (Effort, &mut usize),
        parts: &mut Parts,
    ) {
        let mut found = Vec::new();
        let mut passed_over = Vec::new();
        // Whoever could have put this there must not learn by it what root alone may see.
        trust::on_behalf(root, || {
            walk(root, &service.watch_ignore, bounds, &mut |visited| {
                if visited.is_ignored {
                    passed_over.extend(top_of(&visited));
                    return;
                }
                let (entry, changed) = Entry::new(visited.path, visited.metadata);
                found.push(Found {
                    path: visited.path.to_owned(),
                    entry,
                    changed,
                });
            });
        });
        if found.is_empty() {
            let (entry, changed) = Entry::at(root);
            found.push(Found {
                path: root.to_owned(),
                entry,
                changed,
            });
        }
        self.is_as_ever &= passed_over.is_empty();
        let was_late = bounds
            .stopped
            .as_ref()
            .is_some_and(|stop| stop.why == StopReason::Time);
        let mark = (!was_late).then(|| {
            let contents = contents(&found, effort, reads);
            let entries: Vec<_> = found.iter().map(|file| (&file.path, &file.entry)).collect();
            let times: Vec<StatusTime> = found.iter().map(|file| file.changed).collect();
            Mark {
                identity: digest((entries, passed_over)),
                changed: digest(times),
                attributes: None,
                contents,
                folder: None,
            }
        });
        parts.add_watched(root, mark);
        let entries = found.into_iter().map(|file| (file.path, file.entry));
        self.entries.extend(entries);
    }
}

/// Returns what counts of something that is passed over: which folder it is, where a link leads,
/// and the files by which package managers know what is in there. `None`: nothing counts.
fn top_of(visited: &Visited<'_>) -> Option<(PathBuf, u64)> {
    let (path, metadata) = (visited.path, visited.metadata);
    let is_made = path
        .file_name()
        .is_some_and(|name| name == MADE_BY_PROGRAMS);
    let top = if metadata.is_symlink() {
        digest(path.read_link().unwrap_or_default())
    } else if metadata.is_dir() && !is_made {
        let locks = LOCK_FILES.iter().filter_map(|name| {
            let path = path.join(name);
            let metadata = path.symlink_metadata().ok()?;
            Some(Entry::new(&path, &metadata).0)
        });
        digest((metadata.dev(), metadata.ino(), locks.collect::<Vec<_>>()))
    } else {
        // Neither files that the program writes nor the folders that it makes.
        return None;
    };
    Some((path.to_owned(), top))
}

/// Returns the digest of the contents of all files, if all of them are small and could be read.
fn contents(found: &[Found], effort: Effort, reads: &mut usize) -> Option<u64> {
    let mut digests = Vec::new();
    for Found { path, entry, .. } in found {
        let Some(size) = entry.size() else {
            continue;
        };
        if *reads == 0 || size > LARGEST_READ {
            return None;
        }
        *reads -= 1;
        let digest = trust::examine(path, Purpose::Content(None), |found| {
            digest_of(&found, LARGEST_READ, effort)
        });
        digests.push(digest.ok()??);
    }
    Some(digest(digests))
}
