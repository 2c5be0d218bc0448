//! An executable file that is held open, so that it can be executed after the file at its path was
//! replaced.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::patience::ForeignFile;
use crate::trust::{self, NamedUser, Purpose};

/// An open executable file.
#[derive(Debug)]
pub struct OpenExecutable {
    /// The path of the file. Symlinks were resolved when the file was opened.
    pub path: PathBuf,
    /// The path by which the program knows itself: that of the configuration, with the symlinks of
    /// its folder resolved, but not that of its last name. So a program stays in its release, and
    /// the `python3` of a virtual environment, which is a symlink to another folder, finds the
    /// environment beside its own path.
    pub known_as: PathBuf,
    /// The user number of the file's owner.
    pub owner: u32,
    file: Result<ForeignFile, ExecutableLost>,
}

/// The executable of a service that was taken over is not open any more, and cannot be opened
/// again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path} was lost when smoothserve was restarted: {error}; reload once it is there again")]
pub struct ExecutableLost {
    path: String,
    error: String,
}

impl OpenExecutable {
    /// Resolves the symlinks in `path` and opens the file that is there now, if whoever could have
    /// put it there may decide that it runs.
    pub fn open(path: &Path, named: Option<NamedUser<'_>>) -> io::Result<OpenExecutable> {
        let shown =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let found =
            trust::find(path, Purpose::Program(named)).map_err(|fault| shown(fault.into()))?;
        found.need_regular().map_err(|fault| shown(fault.into()))?;
        Ok(OpenExecutable {
            known_as: found.unfollowed,
            path: found.path,
            owner: found.stat.st_uid,
            file: Ok(found.file.into()),
        })
    }

    /// Makes an executable from the descriptor of a file that an earlier manager had opened at this
    /// path. The program knows itself by the same path.
    pub fn opened(path: PathBuf, file: OwnedFd) -> io::Result<OpenExecutable> {
        // The owner was known when the file was opened. The file system need not be asked again.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let owner = statx(&file, "", flags, StatxFlags::UID)?.stx_uid;
        Ok(OpenExecutable {
            known_as: path.clone(),
            path,
            owner,
            file: Ok(file.into()),
        })
    }

    /// Makes an executable that an earlier manager had opened at this path, and that cannot be
    /// opened again. Instances that run it run on, and no other ones can be started.
    pub fn lost(path: PathBuf, error: &io::Error) -> OpenExecutable {
        let lost = ExecutableLost {
            path: path.display().to_string(),
            error: error.to_string(),
        };
        OpenExecutable {
            known_as: path.clone(),
            path,
            // Nobody is asked for the owner of what cannot be started.
            owner: 0,
            file: Err(lost),
        }
    }

    /// Returns the open file, unless it was lost.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>, ExecutableLost> {
        match &self.file {
            Ok(file) => Ok(file.as_fd()),
            Err(lost) => Err(lost.clone()),
        }
    }
}

/// The prefix of the names under which systemd stores executables.
pub const STORED_PREFIX: &str = "executable-";

/// Returns the name under which systemd stores the executable of a generation.
pub fn stored_name(service: &str, generation: u64) -> String {
    format!("{STORED_PREFIX}{service}-{generation}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_program_knows_itself_by_its_own_name_in_the_folder_of_its_release() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        std::fs::create_dir_all(place.join("releases/7/bin")).unwrap();
        symlink("releases/7", place.join("current")).unwrap();
        symlink("/bin/sh", place.join("releases/7/bin/app")).unwrap();
        let executable = OpenExecutable::open(&place.join("current/bin/app"), None).unwrap();
        assert_eq!(executable.known_as, place.join("releases/7/bin/app"));
        assert_eq!(
            executable.path,
            Path::new("/bin/sh").canonicalize().unwrap()
        );
    }
}
