//! Why a file is not opened or read.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a file is not opened or read. The text follows the path of the file and a colon. It never
/// holds any content of a file.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// The system refuses it, or there is nothing at the path.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The file is a folder.
    #[error("it is a folder")]
    Folder,
    /// The file is a device, a FIFO, a socket and the like.
    #[error("it is no regular file")]
    NotRegular,
    /// The file is one of those that the kernel makes about processes.
    #[error("it is a file of /proc; give a file on a disk")]
    InProc,
    /// The file has more bytes than such a file may have.
    #[error("it is larger than {} KiB", .0 >> 10)]
    TooLarge(u64),
    /// The file has a NUL, so it is no text.
    #[error("line {0} has a NUL, so this is no file of text")]
    Nul(usize),
    /// The file is no UTF-8, so its text could be read in several ways.
    #[error("line {0} is not in UTF-8; save the file in UTF-8")]
    NotUtf8(usize),
    /// Somebody could have led the path to a program of another user.
    #[error(
        "{0}; who owns the program decides as which user it runs, so give the service a `user`"
    )]
    UnsafeProgram(UnsafeStep),
    /// The file was opened with the rights of whoever could have put it there, which was refused.
    #[error(
        "{step}; so it is opened with the rights of {who}: {error}; let {who} read it, or give \
         a path whose folders and links belong to root"
    )]
    Refused {
        /// The step after which root trusts the path no more.
        step: UnsafeStep,
        /// The user whose rights did not suffice.
        who: String,
        /// How the system refuses it.
        error: io::Error,
    },
}

impl FileFault {
    /// Returns true if there is nothing at the path, as far as whoever counts can see.
    pub fn is_missing(&self) -> bool {
        match self {
            FileFault::System(error) => is_absence(error),
            FileFault::Refused { error, .. } => is_absence(error),
            _ => false,
        }
    }
}

/// Returns true for the errors of a way on which a name is missing.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

impl From<FileFault> for io::Error {
    fn from(fault: FileFault) -> io::Error {
        let kind = match &fault {
            FileFault::System(error) => error.kind(),
            FileFault::Refused { .. } | FileFault::UnsafeProgram(_) => {
                io::ErrorKind::PermissionDenied
            }
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, fault)
    }
}

/// A step on the way to a file, from what an ordinary user owns to what this user does not own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeStep {
    /// The folder or link.
    pub from: PathBuf,
    /// The name of the user who owns it, or the number if the user has no name.
    pub owner: String,
    /// Where it leads.
    pub to: PathBuf,
}

impl fmt::Display for UnsafeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnsafeStep { from, owner, to } = self;
        let (from, to) = (from.display(), to.display());
        write!(
            f,
            "{from}, which {owner} owns, leads to {to}, which {owner} does not own"
        )
    }
}
