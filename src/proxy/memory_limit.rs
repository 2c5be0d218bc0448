//! How much memory a worker may use if nobody says so: a part of what the machine, or the control
//! group of the worker, has.

use std::fs;
use std::path::Path;

/// Where the kernel shows the control groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// What the worker leaves to others, its instances above all: one part of so many for itself.
const PARTS: u64 = 2;

/// The least budget: with less, a worker could not serve anybody.
const LEAST: u64 = 32 << 20;

/// Returns the budget of this process in bytes. Must be called before the process gives up its
/// files; without them there is no limit.
pub(super) fn memory_budget() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let most = memory_of_machine(&memory).into_iter();
    let most = most.chain(limit_of_group(&groups, Path::new(GROUPS))).min();
    most.map_or(u64::MAX, |most| (most / PARTS).max(LEAST))
}

/// Finds the memory of the machine in the text of `/proc/meminfo`.
fn memory_of_machine(text: &str) -> Option<u64> {
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().trim_end_matches(" kB").parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Finds the lowest limit of the group in the text of `/proc/self/cgroup` and of the groups above
/// it.
fn limit_of_group(text: &str, groups: &Path) -> Option<u64> {
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = groups.join(group);
    let above = group
        .ancestors()
        .take_while(|group| group.starts_with(groups));
    let limits = above.filter_map(|group| {
        let limit = fs::read_to_string(group.join("memory.max")).ok()?;
        // Without a limit the file says `max`.
        limit.trim().parse().ok()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_the_machine_is_known() {
        let text = "MemTotal:        8000 kB\nMemFree: 10 kB\n";
        assert_eq!(memory_of_machine(text), Some(8000 << 10));
        assert_eq!(memory_of_machine("MemFree: 10 kB\n"), None);
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let folder = tempfile::tempdir().unwrap();
        let scope = folder.path().join("some.slice/worker.scope");
        fs::create_dir_all(&scope).unwrap();
        let limit = || limit_of_group("0::/some.slice/worker.scope\n", folder.path());
        assert_eq!(limit(), None);
        fs::write(scope.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit(), None);
        fs::write(folder.path().join("some.slice/memory.max"), "5000\n").unwrap();
        assert_eq!(limit(), Some(5000));
        fs::write(scope.join("memory.max"), "4000\n").unwrap();
        assert_eq!(limit(), Some(4000));
        assert_eq!(limit_of_group("1:memory:/x\n", folder.path()), None);
    }
}
