//! Who uses whom: the paths of each file, followed to the file that defines what they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::source::{Source, Tree};

/// A file that uses another one.
pub(crate) struct Arrow {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    line: usize,
    name: String,
    /// Whether only the module is named, not yet anything in it.
    pub(crate) to_module: bool,
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.display(), self.to.display());
        write!(f, "{from}:{} takes `{}` from {to}", self.line, self.name)
    }
}

/// Finds all arrows between files, each at every place where it begins. What a file only hands on
/// with `pub use` is no arrow of that file: whoever takes it from there uses the file that defines
/// it.
pub(crate) fn find(tree: &Tree) -> Vec<Arrow> {
    let mut arrows = Vec::new();
    for source in tree.sources() {
        let imports = source.imports().filter(|import| !import.is_reexport);
        let imports = imports.map(|import| (&import.path, import.line));
        let mentions = source.mentions().iter();
        let mentions = mentions.map(|mention| (&mention.path, mention.line));
        for (path, line) in imports.chain(mentions) {
            let Some((to, to_module)) = resolve(tree, source, path, 0) else {
                continue;
            };
            if to.path != source.path {
                arrows.push(Arrow {
                    from: source.path.clone(),
                    to: to.path.clone(),
                    line,
                    name: path.join("::"),
                    to_module,
                });
            }
        }
    }
    arrows
}

/// Follows a path to the file that defines what it names; `true` if that is the module itself.
/// `None` for what is defined outside the crate, and for names that are no items.
fn resolve<'t>(
    tree: &'t Tree,
    at: &'t Source,
    path: &[String],
    depth: usize,
) -> Option<(&'t Source, bool)> {
    // A name may be imported and handed on a few times, and something that looks like a circle must
    // end.
    if depth > 16 {
        return None;
    }
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" | "smoothserve" => walk(tree, tree.get(&[])?, rest, depth),
        "self" => walk(tree, at, rest, depth),
        "super" => {
            let (_, parent) = at.module.split_last()?;
            let supers = rest.iter().take_while(|part| *part == "super").count();
            let parent = &parent[..parent.len().checked_sub(supers)?];
            walk(tree, tree.get(parent)?, &rest[supers..], depth)
        }
        name if at.has_child(name) => walk(tree, at, path, depth),
        name => {
            let import = at.import(name)?;
            let whole = [&import.path[..], rest].concat();
            // `use serde::Serialize` in a module called serde would never end otherwise.
            (whole != path).then(|| resolve(tree, at, &whole, depth + 1))?
        }
    }
}

fn walk<'t>(
    tree: &'t Tree,
    at: &'t Source,
    path: &[String],
    depth: usize,
) -> Option<(&'t Source, bool)> {
    let Some((first, rest)) = path.split_first() else {
        return Some((at, true));
    };
    if at.has_child(first) {
        let child = [&at.module[..], std::slice::from_ref(first)].concat();
        return match tree.get(&child) {
            Some(child) => walk(tree, child, rest, depth),
            None => Some((at, false)),
        };
    }
    if let Some(import) = at.import(first) {
        let whole = [&import.path[..], rest].concat();
        return resolve(tree, at, &whole, depth + 1);
    }
    let mut globs = at.globs().iter();
    let from_glob = globs.find_map(|glob| {
        let whole = [&glob.path[..], path].concat();
        let found = resolve(tree, at, &whole, depth + 1)?;
        let defines = found.0.items().iter().any(|item| item.name == *first);
        defines.then_some(found)
    });
    from_glob.or(Some((at, false)))
}

/// Finds the groups of files in which each can be reached from each.
pub(crate) fn circles(
    uses: &BTreeMap<PathBuf, BTreeMap<PathBuf, Arrow>>,
) -> Vec<BTreeSet<PathBuf>> {
    let reach: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = uses
        .keys()
        .map(|file| {
            let mut reached = BTreeSet::new();
            let mut open = vec![file];
            while let Some(file) = open.pop() {
                let next = uses.get(file).into_iter().flat_map(BTreeMap::keys);
                open.extend(next.filter(|next| reached.insert(*next)));
            }
            (file, reached)
        })
        .collect();
    let mut circles = BTreeSet::new();
    for (file, reached) in &reach {
        if reached.contains(file) {
            let back = reached.iter().filter(|other| {
                let there = reach.get(**other);
                there.is_some_and(|there| there.contains(*file))
            });
            circles.insert(back.map(|other| (*other).clone()).collect::<BTreeSet<_>>());
        }
    }
    circles.into_iter().collect()
}
