//! The files of services, compared with what smoothserve has applied of them.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::patience;
use crate::status::ServiceStatus;

/// The accuracy of a time in the JSON of a snapshot, and more.
const SAME: Duration = Duration::from_micros(10);

/// Finds the services whose files are not as smoothserve has read them, and says so in words. A
/// file that cannot be looked at is taken as it was, and one that was refused since it was written
/// is not waiting.
pub(super) fn changed<'a>(
    services: impl Iterator<Item = (&'a String, &'a Arc<ServiceStatus>)>,
) -> BTreeMap<String, &'static str> {
    let known: Vec<(String, PathBuf, KnownTimes)> = services
        .filter(|(_, service)| !service.removed)
        .filter_map(|(name, service)| {
            let times = KnownTimes {
                applied: service.file_written?.0,
                refused: service.refused_change.as_ref().map(|refused| refused.at.0),
            };
            Some((name.clone(), service.file.clone().into(), times))
        })
        .collect();
    // The state is most wanted when something hangs.
    let looked = patience::within("the files of the services", move || {
        let changed = known.into_iter().filter_map(|(name, file, times)| {
            let written = file.metadata().and_then(|found| found.modified());
            Some((name, in_words(times, written)?))
        });
        changed.collect()
    });
    looked.unwrap_or_default()
}

/// What smoothserve knows about the time of a file.
#[derive(Debug, Clone, Copy)]
struct KnownTimes {
    /// When the file was written that is applied.
    applied: SystemTime,
    /// When a change was refused.
    refused: Option<SystemTime>,
}

fn in_words(known: KnownTimes, written: io::Result<SystemTime>) -> Option<&'static str> {
    match written {
        Ok(written) => {
            let later = written.duration_since(known.applied);
            let apart = later.unwrap_or_else(|earlier| earlier.duration());
            let waits = known.refused.is_none_or(|refused| refused < written);
            (apart > SAME && waits).then_some("its file has changed on disk")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Some("its file was removed from disk"),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: Option<&str> = Some("its file has changed on disk");

    #[test]
    fn a_file_is_changed_if_it_was_written_at_another_time_or_is_gone() {
        let applied = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let known = KnownTimes {
            applied,
            refused: None,
        };
        let [millisecond, rounding] = [1_000_000, 200].map(Duration::from_nanos);
        assert_eq!(in_words(known, Ok(applied + rounding)), None);
        assert_eq!(in_words(known, Ok(applied - rounding)), None);
        for time in [applied + millisecond, applied - millisecond] {
            assert_eq!(in_words(known, Ok(time)), CHANGED);
        }
        let gone = in_words(known, Err(ErrorKind::NotFound.into()));
        assert_eq!(gone, Some("its file was removed from disk"));
        let closed = in_words(known, Err(ErrorKind::PermissionDenied.into()));
        assert_eq!(closed, None);
    }

    #[test]
    fn a_change_that_was_refused_does_not_wait_until_it_is_another_one() {
        let applied = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let [written, refused, again] = [1, 2, 3].map(|later| applied + Duration::from_secs(later));
        let known = KnownTimes {
            applied,
            refused: Some(refused),
        };
        assert_eq!(in_words(known, Ok(written)), None);
        assert_eq!(in_words(known, Ok(again)), CHANGED);
    }
}
