//! A descriptor that several threads share, and each of them waits on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::{Interest, unix::AsyncFd};

/// A shared file descriptor in the form that `AsyncFd` needs.
pub(crate) struct SharedDescriptor(Arc<OwnedFd>);

impl SharedDescriptor {
    /// Registers the descriptor with the reactor of this thread, which then tells when it is
    /// readable.
    #[allow(unsafe_code)]
    pub(crate) fn register(descriptor: Arc<OwnedFd>) -> io::Result<AsyncFd<SharedDescriptor>> {
        // SAFETY: the Arc keeps the descriptor open and the same for as long as the AsyncFd that
        // owns the Arc lives, and nothing takes an OwnedFd out of an Arc that is still shared with
        // it.
        Ok(unsafe {
            AsyncFd::register_with_interest(SharedDescriptor(descriptor), Interest::READABLE)?
        })
    }
}

impl AsRawFd for SharedDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for SharedDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
