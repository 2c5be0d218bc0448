//! A walk through all that is in a folder, with bounds in number, depth and time. It never ends
//! early in silence: whoever walks is told where it stopped, and why.

use std::ffi::OsStr;
use std::fmt;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The most files and folders in all of a service's `watch_files` together that are watched. What
/// comes behind is only looked at from time to time, and at a reload.
pub(crate) const MOST_WATCHED: usize = 20_000;

/// The deepest folder that is entered.
const MAX_DEPTH: usize = 32;

/// The names of files and folders that a walk passes over. A `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredNames(Vec<String>);

impl Default for IgnoredNames {
    /// Returns the names of folders that tools fill, and that nobody means who watches a folder.
    fn default() -> IgnoredNames {
        IgnoredNames(
            ["node_modules", ".git", "__pycache__"]
                .map(str::to_owned)
                .into(),
        )
    }
}

impl IgnoredNames {
    /// Makes a list of these names.
    pub fn new(names: Vec<String>) -> IgnoredNames {
        IgnoredNames(names)
    }

    /// Returns true if a file or folder of this name is passed over.
    pub fn has(&self, name: &OsStr) -> bool {
        let name = name.as_encoded_bytes();
        self.0.iter().any(|pattern| fits(pattern.as_bytes(), name))
    }
}

/// Returns true if a name fits a pattern, in which `*` stands for any text.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let Some(star) = pattern.iter().position(|&byte| byte == b'*') else {
        return pattern == name;
    };
    let (begin, rest) = (&pattern[..star], &pattern[star + 1..]);
    let Some(name) = name.strip_prefix(begin) else {
        return false;
    };
    // Of several stars, each but the last stands for as little as possible.
    match rest.iter().position(|&byte| byte == b'*') {
        None => name.ends_with(rest),
        Some(next) => (0..=name.len()).any(|skipped| {
            name[skipped..].starts_with(&rest[..next])
                && fits(&rest[next..], &name[skipped + next..])
        }),
    }
}

/// What a walk may take. It is used up by all walks that get it.
#[derive(Debug)]
pub(crate) struct WalkBounds {
    /// How many files and folders may still be visited.
    pub(crate) entries: usize,
    /// When the walk ends at the latest. `None`: it may take any time.
    pub(crate) until: Option<Instant>,
    /// Where the walk has stopped before it had seen everything.
    pub(crate) stopped: Option<WalkStop>,
}

/// The first place that a walk has not seen for the gravest reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WalkStop {
    /// What was not visited. If it is a folder that is too deep, what is in it was not.
    pub(crate) at: PathBuf,
    /// Why not.
    pub(crate) why: StopReason,
}

impl WalkStop {
    /// Says for people that files of `watch_files` are not watched.
    pub(crate) fn unwatched(&self) -> String {
        let at = self.at.display();
        let (consequence, most) = match self.why {
            StopReason::Depth => (
                format!("changes in {at} are not seen"),
                self.why.to_string(),
            ),
            StopReason::Entries | StopReason::Time => (
                format!("{at} and what follows are not watched but looked at every minute"),
                format!("{MOST_WATCHED} files and folders are watched"),
            ),
        };
        format!(
            "watch_files: {consequence}, because no more than {most}; name what is not part of the \
             service in watch_ignore"
        )
    }
}

/// Why a walk has not seen everything. What is missing is more with each: a deep folder alone, all
/// that follows in any walk, or all that follows in a slow one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopReason {
    /// A folder is too deep.
    Depth,
    /// There are more files and folders than may be visited.
    Entries,
    /// It took too long.
    Time,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::Entries => f.write_str("so many files and folders are looked at"),
            StopReason::Depth => write!(f, "{MAX_DEPTH} folders in each other are entered"),
            StopReason::Time => f.write_str("some seconds are spent on it"),
        }
    }
}

/// A file or folder that a walk has come to.
pub(crate) struct Visited<'a> {
    /// Its path.
    pub(crate) path: &'a Path,
    /// Its state, of a symlink that of the link itself.
    pub(crate) metadata: &'a Metadata,
    /// True: it has one of the ignored names. What is in it is not visited.
    pub(crate) is_ignored: bool,
}

impl WalkBounds {
    /// Returns the bounds of a walk that may visit this many files and folders in any time.
    pub(crate) fn entries(entries: usize) -> WalkBounds {
        WalkBounds {
            entries,
            until: None,
            stopped: None,
        }
    }

    fn stop(&mut self, at: &Path, why: StopReason) {
        if self.stopped.as_ref().is_none_or(|stop| stop.why < why) {
            let at = at.to_owned();
            self.stopped = Some(WalkStop { at, why });
        }
    }

    /// Takes the place of one entry, if there is one left.
    fn take(&mut self, path: &Path) -> bool {
        if self.entries == 0 {
            self.stop(path, StopReason::Entries);
            return false;
        }
        if self.until.is_some_and(|until| until <= Instant::now()) {
            self.stop(path, StopReason::Time);
            self.entries = 0;
            return false;
        }
        self.entries -= 1;
        true
    }
}

/// Visits what a path leads to and, if that is a folder, all that is in it, by name. Only the path
/// itself is followed if it is a symlink: below it symlinks are visited as what they are, so there
/// are no circles. Nor is the path itself ever ignored: whoever names it means it.
pub(crate) fn walk(
    root: &Path,
    ignored: &IgnoredNames,
    bounds: &mut WalkBounds,
    visit: &mut dyn FnMut(Visited<'_>),
) {
    if let Ok(metadata) = root.metadata() {
        let mut walk = Walk {
            ignored,
            bounds,
            visit,
        };
        walk.descend(root, &metadata, 0);
    }
}

struct Walk<'a> {
    ignored: &'a IgnoredNames,
    bounds: &'a mut WalkBounds,
    visit: &'a mut dyn FnMut(Visited<'_>),
}

impl Walk<'_> {
    fn descend(&mut self, path: &Path, metadata: &Metadata, depth: usize) {
        if !self.bounds.take(path) {
            return;
        }
        let name = path.file_name().filter(|_| depth > 0);
        let is_ignored = name.is_some_and(|name| self.ignored.has(name));
        (self.visit)(Visited {
            path,
            metadata,
            is_ignored,
        });
        if !metadata.is_dir() || is_ignored {
            return;
        }
        let Ok(entries) = path.read_dir() else {
            return;
        };
        if depth == MAX_DEPTH {
            if entries.flatten().next().is_some() {
                self.bounds.stop(path, StopReason::Depth);
            }
            return;
        }
        // Reading more names than can be visited would be in vain, but for the one that shows that
        // there are more.
        let most = self.bounds.entries.saturating_add(1);
        let mut paths: Vec<_> = entries.flatten().take(most).map(|e| e.path()).collect();
        paths.sort();
        for path in paths {
            if let Ok(metadata) = path.symlink_metadata() {
                self.descend(&path, &metadata, depth + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn none() -> IgnoredNames {
        IgnoredNames::new(Vec::new())
    }

    #[test]
    fn is_bounded_in_number_depth_and_time_and_says_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c/d", "e"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let walked = |mut bounds: WalkBounds| {
            let mut seen = Vec::new();
            walk(dir.path(), &none(), &mut bounds, &mut |visited| {
                seen.push(visited.path.to_owned())
            });
            (seen, bounds.stopped)
        };
        let (seen, stopped) = walked(WalkBounds::entries(6));
        assert_eq!((seen.len(), stopped), (6, None));
        assert!(seen.contains(&dir.path().join("c/d")));
        let (seen, stopped) = walked(WalkBounds::entries(5));
        let at = dir.path().join("e");
        let why = StopReason::Entries;
        assert_eq!((seen.len(), stopped), (5, Some(WalkStop { at, why })));
        assert_eq!(walked(WalkBounds::entries(0)).0.len(), 0);
        let (seen, stopped) = walked(WalkBounds {
            until: Some(Instant::now() - Duration::from_millis(1)),
            ..WalkBounds::entries(100)
        });
        assert_eq!((seen.len(), stopped.unwrap().why), (0, StopReason::Time));

        let mut deep = dir.path().join("f");
        for _ in 0..40 {
            deep.push("f");
        }
        fs::create_dir_all(&deep).unwrap();
        let (seen, stopped) = walked(WalkBounds::entries(1000));
        assert_eq!(seen.len(), 6 + 32);
        assert_eq!(stopped.unwrap().why, StopReason::Depth);
        // That a walk ran out of time is not hidden by a folder that was too deep before.
        let mut bounds = WalkBounds::entries(0);
        for why in [StopReason::Depth, StopReason::Time, StopReason::Entries] {
            bounds.stop(&deep, why);
        }
        assert_eq!(bounds.stopped.unwrap().why, StopReason::Time);
    }

    #[test]
    fn ignored_names_are_visited_but_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("node_modules");
        for name in ["a/node_modules/x", "a/.git/y", "b/c"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::write(root.join("b/app.log"), "").unwrap();
        let names = ["node_modules", ".git", "*.log"].map(str::to_owned);
        let (mut seen, mut ignored) = (Vec::new(), Vec::new());
        let names = IgnoredNames::new(names.into());
        walk(
            &root,
            &names,
            &mut WalkBounds::entries(100),
            &mut |visited| {
                let path = visited.path.strip_prefix(&root).unwrap();
                let path = path.display().to_string();
                match visited.is_ignored {
                    true => ignored.push(path),
                    false => seen.push(path),
                }
            },
        );
        assert_eq!(seen, ["", "a", "b", "b/c"]);
        assert_eq!(ignored, ["a/.git", "a/node_modules", "b/app.log"]);
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let has = |pattern: &str, name: &str| {
            IgnoredNames::new(vec![pattern.to_owned()]).has(OsStr::new(name))
        };
        for (pattern, name) in [
            ("*.log", "a.log"),
            ("*.log", ".log"),
            ("a*", "a"),
            ("*", "x"),
            ("a*b*c", "abxbcc"),
            ("**", ""),
        ] {
            assert!(has(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.log", "a.logs"),
            ("a", "aa"),
            ("a*b*c", "ac"),
            ("a*a", "a"),
        ] {
            assert!(!has(pattern, name), "{pattern} {name}");
        }
    }
}
