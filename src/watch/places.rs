//! Places: which folders have to be watched, and for which names in them, so that no change of a
//! file is missed.
//!
//! A file is watched through the folders on the way to it, since a watch on a file goes with the
//! file when another one takes its place. Every step of the way counts: each name may be a symlink
//! that is flipped, a folder that is moved away, or may not be there yet. So for
//! `/srv/current/app`, where `current` leads to `releases/7`, these are watched: `srv` in `/`,
//! `current`, `releases` in `/srv`, `7` in `/srv/releases`, and `app` in `/srv/releases/7`. Where
//! the way ends, because nothing is there, the last folder tells when it goes on.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::walk::{IgnoredNames, WalkBounds, walk};

/// The most symlinks on the way to a file; the kernel follows no more either.
const MAX_LINKS: usize = 40;

/// A folder and the name in it that is of interest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The path of the folder, without symlinks.
    pub(super) folder: PathBuf,
    /// The name in the folder. `None`: every name.
    pub(super) name: Option<OsString>,
    /// True: the place is on the way to an executable.
    pub(super) executable: bool,
}

/// Adds the places on the way to an executable.
pub(super) fn of_executable(path: &Path, places: &mut BTreeSet<Place>) {
    follow(path, true, places);
}

/// Adds the places on the way to a file.
pub(super) fn of_file(path: &Path, places: &mut BTreeSet<Place>) {
    follow(path, false, places);
}

/// Adds the places on the way to something that is perhaps not meant to be there, such as a word
/// that is no path. Nothing is added if the word stands for nothing.
pub(super) fn of_way(path: &Path, places: &mut BTreeSet<Place>) {
    let is_word = path
        .file_name()
        .is_some_and(|name| !name.as_encoded_bytes().contains(&b'.'));
    if !is_word || path.symlink_metadata().is_ok() {
        follow(path, false, places);
    }
}

/// Adds the places on the way to a file or folder, and if it is a folder, those in it.
pub(super) fn of_tree(
    path: &Path,
    ignored: &IgnoredNames,
    bounds: &mut WalkBounds,
    places: &mut BTreeSet<Place>,
) {
    let Some(found) = follow(path, false, places) else {
        return;
    };
    walk(&found, ignored, bounds, &mut |visited| {
        let (path, metadata) = (visited.path, visited.metadata);
        if visited.is_ignored {
            return;
        }
        if metadata.is_dir() {
            places.insert(Place {
                folder: path.to_owned(),
                name: None,
                executable: false,
            });
        } else if metadata.is_symlink() {
            follow(path, false, places);
        }
    });
}

/// Goes step by step as the kernel does, and returns where the way ends if something is there.
fn follow(path: &Path, executable: bool, places: &mut BTreeSet<Place>) -> Option<PathBuf> {
    let mut at = PathBuf::from("/");
    let mut ahead: VecDeque<OsString> = VecDeque::new();
    push_front(&mut ahead, path);
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        places.insert(Place {
            folder: at.clone(),
            name: Some(name.clone()),
            executable,
        });
        let next = at.join(&name);
        let metadata = next.symlink_metadata().ok()?;
        if metadata.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            let target = next.read_link().ok()?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            push_front(&mut ahead, &target);
        } else if metadata.is_dir() || ahead.is_empty() {
            at = next;
        } else {
            return None;
        }
    }
    Some(at)
}

/// Puts the steps of a path before the ones that are left.
fn push_front(ahead: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => ahead.push_front(name.to_owned()),
            Component::ParentDir => ahead.push_front("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// The places below a folder, as `folder:name`.
    fn shown(root: &Path, places: &BTreeSet<Place>) -> Vec<String> {
        places
            .iter()
            .filter_map(|place| {
                let folder = place.folder.strip_prefix(root).ok()?.display();
                let name = place
                    .name
                    .as_deref()
                    .map_or("*".into(), |n| n.to_string_lossy());
                Some(format!("{folder}:{name}"))
            })
            .collect()
    }

    fn tree(path: &Path, places: &mut BTreeSet<Place>) {
        let mut bounds = WalkBounds::entries(1000);
        of_tree(path, &IgnoredNames::default(), &mut bounds, places);
        assert_eq!(bounds.stopped, None);
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        (dir, root)
    }

    #[test]
    fn every_step_to_an_executable_is_a_place() {
        let (_dir, root) = folder();
        fs::create_dir_all(root.join("releases/7")).unwrap();
        fs::write(root.join("releases/7/app-7"), "").unwrap();
        symlink("app-7", root.join("releases/7/app")).unwrap();
        symlink(root.join("releases/7"), root.join("current")).unwrap();
        let mut places = BTreeSet::new();
        of_executable(&root.join("releases/../current/app"), &mut places);
        let expected = [
            ":current",
            ":releases",
            "releases:7",
            "releases/7:app",
            "releases/7:app-7",
        ];
        assert_eq!(shown(&root, &places), expected);
        assert!(places.iter().all(|place| place.executable));
        let top = places.first().unwrap();
        assert_eq!(top.folder, Path::new("/"));
    }

    #[test]
    fn the_way_ends_where_nothing_is() {
        let (_dir, root) = folder();
        let mut places = BTreeSet::new();
        of_file(&root.join("a/b/c"), &mut places);
        assert_eq!(shown(&root, &places), [":a"]);

        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/b"), "a file where a folder is needed").unwrap();
        places.clear();
        of_file(&root.join("a/b/c"), &mut places);
        assert_eq!(shown(&root, &places), [":a", "a:b"]);

        symlink("loop", root.join("loop")).unwrap();
        places.clear();
        of_file(&root.join("loop/x"), &mut places);
        assert_eq!(shown(&root, &places), [":loop"]);
    }

    #[test]
    fn folders_are_places_with_all_that_is_in_them() {
        let (_dir, root) = folder();
        fs::create_dir_all(root.join("view/deep")).unwrap();
        fs::create_dir_all(root.join("view/node_modules/many")).unwrap();
        fs::write(root.join("view/page"), "").unwrap();
        fs::write(root.join("target"), "").unwrap();
        symlink("../target", root.join("view/link")).unwrap();
        symlink("..", root.join("view/circle")).unwrap();
        let mut places = BTreeSet::new();
        tree(&root.join("view"), &mut places);
        let expected = [
            ":target",
            ":view",
            "view:*",
            "view:circle",
            "view:link",
            "view/deep:*",
        ];
        assert_eq!(shown(&root, &places), expected);
    }
}
