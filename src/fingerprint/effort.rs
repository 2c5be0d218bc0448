//! The effort that taking fingerprints may cost.

use std::time::{Duration, Instant};

/// How long the contents of files are read. What is left then is compared by its status alone.
const CONTENTS: Duration = Duration::from_secs(2);

/// How long folders are gone through: less than the time after which a look counts as one that
/// hangs.
const WALKS: Duration = Duration::from_secs(5);

/// How long the folders of one service are gone through in any case, however much time the services
/// before it have taken.
const LEAST_WALKS: Duration = Duration::from_secs(1);

/// The time that all fingerprints of one look at the disk may take together. A command that needs
/// files is answered within 20 s.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    contents_until: Instant,
    pub(super) walks_until: Instant,
}

impl Effort {
    /// Begins a look at the disk.
    pub fn begin() -> Effort {
        let now = Instant::now();
        Effort {
            contents_until: now + CONTENTS,
            walks_until: now + WALKS,
        }
    }

    /// Begins with the next service of the look. A service that takes all the time must not leave
    /// the next ones unread.
    pub fn of_next_service(self) -> Effort {
        let least = Instant::now() + LEAST_WALKS;
        Effort {
            walks_until: self.walks_until.max(least),
            ..self
        }
    }

    /// Returns an effort of which nothing is left.
    #[cfg(test)]
    pub fn over() -> Effort {
        let now = Instant::now();
        Effort {
            contents_until: now,
            walks_until: now,
        }
    }

    /// Returns the effort of a look that reads no contents.
    pub(super) fn without_contents() -> Effort {
        let now = Instant::now();
        Effort {
            contents_until: now,
            ..Effort::begin()
        }
    }

    /// Returns true while contents may be read.
    pub(super) fn reads_contents(&self) -> bool {
        Instant::now() < self.contents_until
    }
}
