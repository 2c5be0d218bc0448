//! A descriptor that is shared, and waited for besides.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::{Interest, unix::AsyncFd};

/// `AsyncFd` wants something that has a raw descriptor.
pub(crate) struct Shared(Arc<OwnedFd>);

impl Shared {
    /// Lets the thread's reactor say when it is readable.
    #[allow(unsafe_code)]
    pub(crate) fn register(descriptor: Arc<OwnedFd>) -> io::Result<AsyncFd<Shared>> {
        // SAFETY: the Arc keeps the descriptor open and the same for as long as the AsyncFd that owns the Arc lives,
        // and nothing takes an OwnedFd out of an Arc that is still shared with it.
        Ok(unsafe { AsyncFd::register_with_interest(Shared(descriptor), Interest::READABLE)? })
    }
}

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
