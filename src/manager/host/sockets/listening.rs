//! A listening socket, as both sources of the kernel describe it.

use std::net::IpAddr;

/// A listening socket as the kernel reports it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listening {
    /// The address that the socket is bound to, if the kernel's text can be parsed.
    pub(super) address: Option<IpAddr>,
    /// The port that the socket is bound to.
    pub(super) port: u16,
    /// The number of connections that wait to be accepted.
    pub(super) queue: u32,
    /// The inode of the socket, by which `/proc/<pid>/fd` names it.
    pub(super) inode: u64,
    /// True if the socket takes no connections of IPv4, although it is bound to all addresses, as
    /// far as the source tells.
    pub(super) only_v6: bool,
}

/// The IP version of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}
