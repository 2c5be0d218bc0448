//! From which processes a process descends, see proc_pid_stat(5).

/// How many ancestors of a process are looked at: an instance is never further away from what
/// speaks for it.
const MOST_ANCESTORS: usize = 32;

/// Yields a process, its parent, the parent of that one, and so on.
pub fn with_ancestors(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(pid), |&pid| parent(pid)).take(MOST_ANCESTORS)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, see proc(5).
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .filter(|&parent| parent > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_descends_from_its_parent() {
        let own = std::process::id();
        let line: Vec<u32> = with_ancestors(own).take(2).collect();
        assert_eq!(line, [own, std::os::unix::process::parent_id()]);
    }
}
