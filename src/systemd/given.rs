//! What systemd hands to a process that it starts, see sd_listen_fds(3).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::net::{AddressFamily, SocketType, sockopt::socket_type};

use super::supervisor::Supervisor;

/// The name under which systemd hands over the control socket.
pub const CONTROL_SOCKET: &str = "bus";

/// All that systemd has handed to this process.
#[derive(Debug, Default)]
pub struct Given {
    descriptors: Vec<(String, OwnedFd)>,
    /// The way to tell systemd something. `None`: this process is not supervised.
    pub supervisor: Option<Supervisor>,
}

/// A listening TCP socket and its name: that of its `.socket` unit, or the one it was stored under.
pub type GivenSocket = (String, std::net::TcpListener);

impl Given {
    /// Takes what systemd hands over, and clears the environment so that no other process takes it
    /// for its own.
    ///
    /// # Safety
    /// Called before any other thread runs, and before anything else was opened: the descriptors
    /// named in the environment are nobody else's then.
    pub unsafe fn take() -> io::Result<Given> {
        // SAFETY: no other thread reads the environment.
        let descriptors = unsafe { sd_notify::listen_fds_with_names_and_unset_env()? };
        // SAFETY: systemd opened these for this process alone, and they were not taken before.
        let own = |(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) });
        Ok(Given {
            descriptors: descriptors.map(own).collect(),
            supervisor: Supervisor::find(),
        })
    }

    /// Takes the control socket, if there is a unit for it.
    pub fn control_socket(&mut self) -> Option<UnixListener> {
        self.named(CONTROL_SOCKET).map(UnixListener::from)
    }

    /// Takes the descriptors that were stored under names with this prefix.
    pub fn take_stored(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let is_wanted = |(name, _): &mut (String, OwnedFd)| name.starts_with(prefix);
        self.descriptors.extract_if(.., is_wanted).collect()
    }

    /// Takes all listening TCP sockets.
    pub fn tcp_sockets(&mut self) -> Vec<GivenSocket> {
        let is_wanted = |(_, descriptor): &mut (String, OwnedFd)| is_tcp_listener(descriptor);
        let sockets = self.descriptors.extract_if(.., is_wanted);
        sockets
            .map(|(name, descriptor)| (name, descriptor.into()))
            .collect()
    }

    /// Adds listening TCP sockets of another source to those of systemd.
    pub fn add(&mut self, name: &str, sockets: Vec<std::net::TcpListener>) {
        let sockets = sockets.into_iter().map(OwnedFd::from);
        let sockets = sockets.map(|socket| (name.to_owned(), socket));
        self.descriptors.extend(sockets);
    }

    /// Lists the names of the descriptors that nobody has taken.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.descriptors.iter().map(|(name, _)| name.as_str())
    }

    fn named(&mut self, wanted: &str) -> Option<OwnedFd> {
        let index = self
            .descriptors
            .iter()
            .position(|(name, _)| name == wanted)?;
        Some(self.descriptors.swap_remove(index).1)
    }
}

fn is_tcp_listener(descriptor: impl AsFd) -> bool {
    let is_internet = |family| matches!(family, AddressFamily::INET | AddressFamily::INET6);
    socket_type(&descriptor).is_ok_and(|kind| kind == SocketType::STREAM)
        && socket_domain(&descriptor).is_ok_and(is_internet)
        && socket_acceptconn(&descriptor).unwrap_or(false)
}
