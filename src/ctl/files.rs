//! The files of the configuration, compared with what smoothserve has applied of them.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::patience;
use crate::status::Snapshot;

/// The accuracy of a time in the JSON of a snapshot, and more.
const SAME: Duration = Duration::from_micros(10);

/// What has become of a file since smoothserve has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileChange {
    /// The file was written, or is new.
    Written,
    /// The file is not there any more.
    Removed,
}

/// The files of the configuration that wait to be applied.
#[derive(Debug, Default)]
pub(super) struct WaitingFiles {
    /// `smoothserve.yaml`.
    pub(super) settings: Option<FileChange>,
    /// The files of services, by their names.
    pub(super) services: BTreeMap<String, FileChange>,
}

/// Finds the files that are not as smoothserve has read them. A file that cannot be looked at is
/// taken as it was, and one that was refused since it was written does not wait.
pub(super) fn waiting(snapshot: &Snapshot) -> WaitingFiles {
    let services = snapshot.services.iter();
    let services: Vec<(String, PathBuf, KnownTimes)> = services
        .filter(|(_, service)| !service.removed)
        .filter_map(|(name, service)| {
            let times = KnownTimes {
                applied: Some(service.file_written?.0),
                refused: service.refused_change.as_ref().map(|refused| refused.at.0),
            };
            Some((name.clone(), service.file.clone().into(), times))
        })
        .collect();
    let settings = &snapshot.settings;
    let times = KnownTimes {
        applied: settings.file_written.map(|written| written.0),
        refused: None,
    };
    // An older smoothserve names no file.
    let settings = (!settings.file.is_empty()).then(|| PathBuf::from(&settings.file));
    let look = move || WaitingFiles {
        settings: settings.and_then(|file| change(times, written(&file))),
        services: services
            .into_iter()
            .filter_map(|(name, file, times)| Some((name, change(times, written(&file))?)))
            .collect(),
    };
    // The state is most wanted when something hangs.
    let looked = patience::within("the files of the configuration", look);
    looked.unwrap_or_default()
}

/// What smoothserve knows about the time of a file.
#[derive(Debug, Clone, Copy)]
struct KnownTimes {
    /// When the file was written that is applied; `None` if there was none.
    applied: Option<SystemTime>,
    /// When a change was refused.
    refused: Option<SystemTime>,
}

fn written(file: &Path) -> io::Result<SystemTime> {
    file.metadata().and_then(|found| found.modified())
}

fn change(known: KnownTimes, written: io::Result<SystemTime>) -> Option<FileChange> {
    match (written, known.applied) {
        (Ok(written), applied) => {
            let is_other = applied.is_none_or(|applied| {
                let later = written.duration_since(applied);
                later.unwrap_or_else(|earlier| earlier.duration()) > SAME
            });
            let waits = known.refused.is_none_or(|refused| refused < written);
            (is_other && waits).then_some(FileChange::Written)
        }
        (Err(error), Some(_)) if error.kind() == ErrorKind::NotFound => Some(FileChange::Removed),
        (Err(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn after(applied: Option<SystemTime>, refused: Option<SystemTime>) -> KnownTimes {
        KnownTimes { applied, refused }
    }

    #[test]
    fn a_file_waits_if_it_was_written_at_another_time_or_is_gone() {
        let known = after(Some(applied()), None);
        let [millisecond, rounding] = [1_000_000, 200].map(Duration::from_nanos);
        for time in [applied() + rounding, applied() - rounding] {
            assert_eq!(change(known, Ok(time)), None);
        }
        for time in [applied() + millisecond, applied() - millisecond] {
            assert_eq!(change(known, Ok(time)), Some(FileChange::Written));
        }
        let gone = || Err(ErrorKind::NotFound.into());
        assert_eq!(change(known, gone()), Some(FileChange::Removed));
        assert_eq!(change(known, Err(ErrorKind::PermissionDenied.into())), None);
        let none = after(None, None);
        assert_eq!(change(none, gone()), None);
        assert_eq!(change(none, Ok(applied())), Some(FileChange::Written));
    }

    #[test]
    fn a_change_that_was_refused_does_not_wait_until_it_is_another_one() {
        let [written, refused, again] =
            [1, 2, 3].map(|later| applied() + Duration::from_secs(later));
        let known = after(Some(applied()), Some(refused));
        assert_eq!(change(known, Ok(written)), None);
        assert_eq!(change(known, Ok(again)), Some(FileChange::Written));
    }
}
