//! The quiet time: when the files of a service have been quiet for long enough.

use std::time::{Duration, Instant};

/// How long files that never stop changing can delay a restart.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Changes that were seen and that the manager does not know of yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changes {
    first: Instant,
    last: Instant,
    /// The last change of the executable.
    executable: Option<Instant>,
}

impl Changes {
    /// Adds a change to those that were seen before, if any.
    pub(super) fn add(changes: Option<Changes>, now: Instant, executable: bool) -> Changes {
        let before = changes.unwrap_or(Changes {
            first: now,
            last: now,
            executable: None,
        });
        Changes {
            first: before.first,
            last: now,
            executable: if executable {
                Some(now)
            } else {
                before.executable
            },
        }
    }

    /// Returns when to tell about the changes. Files that never stop changing, such as a log in a
    /// watched folder, delay this only for a while; an executable that is still being written can
    /// delay it forever, since it cannot be started.
    pub(super) fn due(&self, quiet: Duration) -> Instant {
        let rest = (self.last + quiet).min(self.first + MAX_WAIT.max(quiet));
        self.executable.map_or(rest, |last| rest.max(last + quiet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// When to tell about changes at these seconds, in seconds.
    fn due(changes: &[(u32, bool)], quiet: Duration) -> u64 {
        let start = Instant::now();
        let changes = changes.iter().fold(None, |changes, (second, executable)| {
            Some(Changes::add(changes, start + SECOND * *second, *executable))
        });
        (changes.unwrap().due(quiet) - start).as_secs()
    }

    #[test]
    fn each_change_restarts_the_quiet_time() {
        assert_eq!(due(&[(0, false)], SECOND), 1);
        assert_eq!(due(&[(0, false), (1, false), (3, false)], SECOND * 2), 5);
        assert_eq!(due(&[(0, false)], Duration::ZERO), 0);
    }

    #[test]
    fn files_that_never_rest_put_it_off_for_a_while_only() {
        let log: Vec<_> = (0..100).map(|second| (second, false)).collect();
        assert_eq!(due(&log, SECOND * 2), 30);
        assert_eq!(due(&log, SECOND * 60), 60);
    }

    #[test]
    fn an_executable_that_is_being_written_is_waited_for() {
        let upload: Vec<_> = (0..100).map(|second| (second, true)).collect();
        assert_eq!(due(&upload, SECOND * 2), 101);
        let mut both: Vec<_> = (0..100).map(|second| (second, false)).collect();
        both[50].1 = true;
        assert_eq!(due(&both, SECOND * 2), 52);
        both[5].1 = true;
        both[50].1 = false;
        assert_eq!(due(&both, SECOND * 2), 30);
    }
}
