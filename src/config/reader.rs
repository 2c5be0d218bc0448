//! The reader of one service's file: takes its keys one by one, and remembers where values stand.
//!
//! The parts of a service (`listen`, `site`, `process` and so on) read their own keys through it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::fault::Position;
use super::fields::{At, Fields, Meaning, Report};
use super::source::{Source, join};
use super::value;

/// Goes through the keys of one service's file.
pub(super) struct Reader<'s> {
    fields: Fields,
    /// The folder of the file. Relative paths begin there.
    pub(super) folder: PathBuf,
    /// Where the values of keys stand, for faults that are found later.
    pub(super) marks: BTreeMap<&'static str, Position>,
    /// Collects the faults of the file.
    pub(super) report: Report<'s>,
}

impl<'s> Reader<'s> {
    /// Begins with the keys of a file, none of which is read yet.
    pub(super) fn new(source: &Source, fields: Fields, report: Report<'s>) -> Reader<'s> {
        Reader {
            fields,
            folder: source.path.parent().unwrap_or(Path::new("/")).to_owned(),
            marks: BTreeMap::new(),
            report,
        }
    }

    /// Reads the value of a key and marks where it stands. `None`: the key is left out, or its
    /// value is wrong, which is reported.
    pub(super) fn get<T>(&mut self, key: &'static str, meaning: Meaning<T>) -> Option<T> {
        self.get_at(key, meaning).map(|found| found.value)
    }

    /// Reads a value as [`Reader::get`] does, and returns it with its position.
    pub(super) fn get_at<T>(&mut self, key: &'static str, meaning: Meaning<T>) -> Option<At<T>> {
        let found = self.fields.get(key, &mut self.report, meaning)?;
        self.mark(key, found.at);
        Some(found)
    }

    /// Reads a value as [`Reader::get_at`] does, and reports a fault if the key is left out.
    pub(super) fn need<T>(&mut self, key: &'static str, meaning: Meaning<T>) -> Option<At<T>> {
        let found = self.fields.need(key, &mut self.report, meaning)?;
        self.mark(key, found.at);
        Some(found)
    }

    /// Returns the position of a key, rather than of its value, if the file has the key.
    pub(super) fn key(&self, key: &str) -> Option<Position> {
        self.fields.key(key)
    }

    /// Remembers where the value of a key stands.
    pub(super) fn mark(&mut self, key: &'static str, at: Position) {
        self.marks.insert(key, at);
    }

    /// Reads the path that a key gives, relative to the folder of the file.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.get(key, value::path)?;
        Some(join(&self.folder, &path))
    }

    /// Reads a path as [`Reader::path`] does, and reports a fault if the key is left out.
    pub(super) fn path_needed(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.need(key, value::path)?.value;
        Some(join(&self.folder, &path))
    }
}
