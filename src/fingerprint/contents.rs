//! The digests of the contents of files.
//!
//! # Theory of operation
//! Whoever takes a fingerprint wants the contents only to compare them if nothing but the time of a
//! file's status is another one. So a digest that was computed once is remembered for as long as
//! the file has the same status, and a look at files that nobody has touched reads none of them.
//! The clock that stamps files is a coarse one: the digest of a file that has just been changed is
//! not remembered, because the next change may get the same stamp.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};

use super::effort::Effort;
use super::entry::{FileIdentity, StatusTime, status_time};
use crate::trust::FoundFile;

/// How old the last change of a file must be before its digest is remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// The most digests that are remembered.
const MOST_REMEMBERED: usize = 16_384;

/// How many bytes are read at a time.
const CHUNK: usize = 64 << 10;

/// The digests that are remembered, by device and inode.
static REMEMBERED: Mutex<BTreeMap<(u64, u64), Remembered>> = Mutex::new(BTreeMap::new());

/// The digest of a file, and the status that the file had.
struct Remembered {
    status: Status,
    digest: u64,
}

/// What is another one as soon as somebody may have written to a file.
type Status = (FileIdentity, StatusTime);

/// Returns the digest of a regular file's contents. `None`: the file is larger than `largest`, or
/// cannot be read, or not in time.
pub(super) fn digest_of(found: &FoundFile, largest: u64, effort: Effort) -> Option<u64> {
    found.need_regular().ok()?;
    let stat = &found.stat;
    if stat.st_size.cast_unsigned() > largest {
        return None;
    }
    let file = (stat.st_dev, stat.st_ino);
    let status = (FileIdentity::from(stat), status_time(stat));
    if let Some(digest) = remembered(file, &status) {
        return Some(digest);
    }
    let digest = read(found.open().ok()?, largest, effort)?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_ctime.try_into().ok()?);
    if changed.elapsed().is_ok_and(|age| age >= SETTLED) {
        remember(file, Remembered { status, digest });
    }
    Some(digest)
}

fn remembered(file: (u64, u64), status: &Status) -> Option<u64> {
    let known = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get(&file)?;
    (known.status == *status).then_some(known.digest)
}

fn remember(file: (u64, u64), seen: Remembered) {
    let mut known = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= MOST_REMEMBERED {
        known.clear();
    }
    known.insert(file, seen);
}

fn read(mut file: File, largest: u64, effort: Effort) -> Option<u64> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    let mut length = 0;
    while effort.reads_contents() {
        let count = file.read(&mut chunk).ok()?;
        length += count as u64;
        if length > largest {
            return None;
        }
        if count == 0 {
            let digest = context.finish();
            let first = digest.as_ref().first_chunk()?;
            return Some(u64::from_be_bytes(*first));
        }
        context.update(&chunk[..count]);
    }
    None
}
