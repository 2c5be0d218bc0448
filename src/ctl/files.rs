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
/// file that cannot be looked at is taken as it was.
pub(super) fn changed<'a>(
    services: impl Iterator<Item = (&'a String, &'a Arc<ServiceStatus>)>,
) -> BTreeMap<String, &'static str> {
    let known: Vec<(String, PathBuf, SystemTime)> = services
        .filter(|(_, service)| !service.removed)
        .filter_map(|(name, service)| {
            let written = service.file_written?.0;
            Some((name.clone(), service.file.clone().into(), written))
        })
        .collect();
    // The state is most wanted when something hangs.
    let looked = patience::within("the files of the services", move || {
        let changed = known.into_iter().filter_map(|(name, file, known)| {
            let written = file.metadata().and_then(|found| found.modified());
            Some((name, in_words(known, written)?))
        });
        changed.collect()
    });
    looked.unwrap_or_default()
}

fn in_words(known: SystemTime, written: io::Result<SystemTime>) -> Option<&'static str> {
    match written {
        Ok(written) => {
            let later = written.duration_since(known);
            let apart = later.unwrap_or_else(|earlier| earlier.duration());
            (apart > SAME).then_some("its file has changed on disk")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Some("its file was removed from disk"),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_changed_if_it_was_written_at_another_time_or_is_gone() {
        let known = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let [millisecond, rounding] = [1_000_000, 200].map(Duration::from_nanos);
        assert_eq!(in_words(known, Ok(known + rounding)), None);
        assert_eq!(in_words(known, Ok(known - rounding)), None);
        for time in [known + millisecond, known - millisecond] {
            let words = in_words(known, Ok(time));
            assert_eq!(words, Some("its file has changed on disk"));
        }
        let gone = in_words(known, Err(ErrorKind::NotFound.into()));
        assert_eq!(gone, Some("its file was removed from disk"));
        let closed = in_words(known, Err(ErrorKind::PermissionDenied.into()));
        assert_eq!(closed, None);
    }
}
