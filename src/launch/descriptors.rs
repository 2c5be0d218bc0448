//! The descriptors of a launcher: those that come from the manager, and those that the instance is
//! to have.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The first descriptor that `LISTEN_FDS` passes.
const FIRST_PASSED: RawFd = 3;

/// Copies a descriptor to a number that no instance gets a descriptor at.
pub(crate) fn out_of_the_way(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(
        descriptor,
        FIRST_PASSED + 1,
    )?)
}

/// Takes the descriptors that the manager sends with the first byte, before its order.
pub(crate) fn receive(manager: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        manager,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.flatten().collect())
}

/// Sees to it that `execve` leaves open only the standard three, `passed` as descriptor 3, and
/// `kept` where it is.
pub(super) fn arrange(passed: Option<OwnedFd>, kept: Option<&OwnedFd>) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|&number| number >= FIRST_PASSED) {
            // SAFETY: only the flags of the descriptor are changed. If it is not open any more, as
            // that of the listing itself, the call fails, which does not matter.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
    }
    if let Some(kept) = kept {
        rustix::io::fcntl_setfd(kept, FdFlags::empty())?;
    }
    if let Some(passed) = passed {
        // Whatever has this number now must move away; `execve` closes the copy or takes the one
        // that was kept.
        // SAFETY: nobody else owns number 3 from here on: the process is about to be another
        // program, and if that fails it ends. The descriptor is never closed here, see `forget`.
        let mut third = unsafe { OwnedFd::from_raw_fd(FIRST_PASSED) };
        let result = rustix::io::dup2(&passed, &mut third);
        std::mem::forget(third);
        std::mem::forget(passed);
        result?;
    }
    Ok(())
}
