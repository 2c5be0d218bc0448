//! The ancestors and the descendants of a process, read from proc_pid_stat(5).

use std::collections::{BTreeMap, BTreeSet};

/// How many ancestors of a process are read. A process that sends `READY=1` for an instance is
/// never further away from it.
const MOST_ANCESTORS: usize = 32;

/// Yields a process, its parent, its grandparent, and so on.
pub fn with_ancestors(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(pid), |&pid| parent(pid)).take(MOST_ANCESTORS)
}

/// Yields the numbers of all processes.
pub fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Returns the descendants of a process, as far as they have not ended.
pub fn descendants(pid: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for number in all() {
        if let Some(parent) = parent(number) {
            children.entry(parent).or_default().push(number);
        }
    }
    let mut found = BTreeSet::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = children.remove(&parent).unwrap_or_default();
        parents.extend(&children);
        found.extend(children);
    }
    found
}

/// Returns true if a process has ended, and is still there only because nobody has taken its exit
/// status yet.
pub fn is_zombie(pid: u32) -> bool {
    field(pid, 0).is_some_and(|state| state == "Z")
}

fn parent(pid: u32) -> Option<u32> {
    let parent = field(pid, 1)?.parse().ok();
    parent.filter(|&parent| parent > 0)
}

/// Reads a field of the status of a process, counted from the one behind its name.
fn field(pid: u32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process name in parentheses may contain any characters, so the last `)` ends it, see
    // proc(5).
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_descends_from_its_parent() {
        let own = std::process::id();
        let line: Vec<u32> = with_ancestors(own).take(2).collect();
        assert_eq!(line, [own, std::os::unix::process::parent_id()]);
        assert!(descendants(line[1]).contains(&own));
        assert!(!descendants(own).contains(&own));
    }
}
