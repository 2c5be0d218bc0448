//! A walk through all that is in a folder, with bounds.

use std::fs::Metadata;
use std::path::Path;

/// The most files and folders in all of a service's `watch_files` together. What comes behind is
/// passed over.
pub(crate) const MAX_ENTRIES: usize = 20_000;

/// The deepest folder that is entered.
const MAX_DEPTH: usize = 32;

/// Visits what a path leads to and, if that is a folder, all that is in it, by name. Only the path
/// itself is followed if it is a symlink: below it symlinks are visited as what they are, so there
/// are no circles.
pub(crate) fn walk(root: &Path, budget: &mut usize, visit: &mut dyn FnMut(&Path, &Metadata)) {
    if let Ok(metadata) = root.metadata() {
        descend(root, &metadata, 0, budget, visit);
    }
}

fn descend(
    path: &Path,
    metadata: &Metadata,
    depth: usize,
    budget: &mut usize,
    visit: &mut dyn FnMut(&Path, &Metadata),
) {
    let Some(left) = budget.checked_sub(1) else {
        return;
    };
    *budget = left;
    visit(path, metadata);
    if !metadata.is_dir() || depth == MAX_DEPTH {
        return;
    }
    let Ok(entries) = path.read_dir() else {
        return;
    };
    // Reading more names than can be visited would be in vain.
    let mut paths: Vec<_> = entries.flatten().take(*budget).map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if let Ok(metadata) = path.symlink_metadata() {
            descend(&path, &metadata, depth + 1, budget, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn is_bounded_in_number_and_depth() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c/d", "e"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut deep = dir.path().join("f");
        for _ in 0..40 {
            deep.push("f");
        }
        fs::create_dir_all(&deep).unwrap();
        let count = |mut budget: usize| {
            let mut seen = Vec::new();
            walk(dir.path(), &mut budget, &mut |path, _| {
                seen.push(path.to_owned())
            });
            seen
        };
        assert_eq!(count(3).len(), 3);
        assert_eq!(count(0).len(), 0);
        let all = count(1000);
        assert_eq!(all.len(), 6 + 32);
        assert!(all.contains(&dir.path().join("c/d")));
    }
}
