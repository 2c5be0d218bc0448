//! What both sources tell of a listening socket.

use std::net::IpAddr;

/// A listening socket as the kernel shows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listening {
    /// The address it is bound to, as far as the kernel's text can be understood.
    pub(super) address: Option<IpAddr>,
    /// The number of connections that wait to be accepted.
    pub(super) queue: u32,
    /// The number by which `/proc/<pid>/fd` names the socket.
    pub(super) inode: u64,
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}
