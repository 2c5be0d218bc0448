//! A look at one file: what it is, the digest of its contents, and what runs it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};

use super::contents::digest_of;
use super::effort::Effort;
use super::entry::Entry;
use super::mark::Mark;
use crate::trust::{self, FileFault, FoundFile, Purpose};

/// The largest file whose contents are read.
const LARGEST: u64 = 64 << 20;

/// The most bytes of the line with which a script begins; the kernel reads no more either.
const LONGEST_FIRST_LINE: u64 = 256;

/// What was seen of a file.
#[derive(Debug)]
pub(super) struct Look {
    /// The path with all symlinks resolved.
    pub(super) path: PathBuf,
    /// The path with the symlinks of its folders resolved.
    pub(super) unfollowed: PathBuf,
    /// The status of the file.
    pub(super) stat: Stat,
    /// The digest of the contents, if they could be read.
    pub(super) contents: Option<u64>,
    /// What runs the file, if it is a script.
    pub(super) interpreter: Option<Interpreter>,
}

/// What the first line of a script names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpreter {
    /// The program that runs the script.
    pub(super) program: PathBuf,
    /// The rest of the line.
    pub(super) argument: OsString,
}

impl Look {
    /// Looks at what a path leads to.
    pub(super) fn at(
        path: &std::path::Path,
        purpose: Purpose<'_>,
        effort: Effort,
    ) -> Result<Look, FileFault> {
        trust::examine(path, purpose, |found| Look::new(found, effort))
    }

    fn new(found: FoundFile, effort: Effort) -> Look {
        let beginning = found.beginning(LONGEST_FIRST_LINE).ok();
        Look {
            contents: digest_of(&found, LARGEST, effort),
            interpreter: beginning.and_then(|bytes| Interpreter::of(&bytes)),
            path: found.path,
            unfollowed: found.unfollowed,
            stat: found.stat,
        }
    }

    /// Returns true if this is a regular file.
    pub(super) fn is_regular(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::RegularFile
    }

    /// Returns the mark of a file that is run or read by its path.
    pub(super) fn mark(&self) -> Mark {
        let entry = Entry::with(&self.stat);
        let identity = (&self.path, &self.unfollowed, entry);
        Mark::of(identity, &self.stat, self.contents)
    }
}

impl Interpreter {
    /// Reads the first line of a script as the kernel does.
    fn of(script: &[u8]) -> Option<Interpreter> {
        let rest = script.strip_prefix(b"#!")?;
        let rest = &rest[..rest.len().min(LONGEST_FIRST_LINE as usize - 2)];
        let line = rest.split(|&byte| byte == b'\n').next()?;
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let line = line.trim_ascii();
        let end = line.iter().position(is_blank);
        let (program, argument) = line.split_at(end.unwrap_or(line.len()));
        if program.is_empty() || program.contains(&0) {
            return None;
        }
        Some(Interpreter {
            program: OsString::from_vec(program.to_vec()).into(),
            argument: OsString::from_vec(argument.trim_ascii().to_vec()),
        })
    }

    /// Returns the name of the program that `env` starts, if this is `env` and the name has to be
    /// looked up in `PATH`.
    pub(super) fn looked_up(&self) -> Option<&str> {
        if self.program.file_name()? != "env" {
            return None;
        }
        let mut words = self.argument.to_str()?.split_ascii_whitespace();
        words.find(|word| !word.starts_with('-') && !word.contains('='))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_script_is_read_as_the_kernel_does() {
        let read = |script: &str| {
            let interpreter = Interpreter::of(script.as_bytes())?;
            let looked_up = interpreter.looked_up().map(str::to_owned);
            Some((
                interpreter.program.to_str().unwrap().to_owned(),
                interpreter.argument.to_str().unwrap().to_owned(),
                looked_up,
            ))
        };
        let is = |program: &str, argument: &str, looked_up: Option<&str>| {
            let looked_up = looked_up.map(str::to_owned);
            Some((program.to_owned(), argument.to_owned(), looked_up))
        };
        assert_eq!(read("#!/bin/sh\necho"), is("/bin/sh", "", None));
        assert_eq!(read("#! /bin/sh -e "), is("/bin/sh", "-e", None));
        let env = read("#!/usr/bin/env python3\n");
        assert_eq!(env, is("/usr/bin/env", "python3", Some("python3")));
        let env = read("#!/usr/bin/env -S A=1 node --x\n");
        assert_eq!(env, is("/usr/bin/env", "-S A=1 node --x", Some("node")));
        assert_eq!(read("#!\n"), None);
        assert_eq!(read("\x7fELF"), None);
    }
}
