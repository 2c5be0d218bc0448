//! The socket on which instances report their readiness with the protocol of sd_notify(3).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg,
    sockopt::set_socket_passcred,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// The longest message that is read, in bytes. systemd has the same limit.
const LONGEST_MESSAGE: usize = 4096;

/// The socket on which instances report their readiness.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
}

impl NotifySocket {
    /// Returns the path of the socket in a run directory.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("notify")
    }

    /// Creates the socket. Any user may write to it; the kernel tells which process has sent a
    /// message.
    pub fn bind(run_dir: &Path) -> io::Result<NotifySocket> {
        let path = NotifySocket::path(run_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        set_socket_passcred(&socket, true)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(NotifySocket { socket })
    }

    /// Takes over the socket of an earlier manager. Messages that arrived in between wait in the
    /// socket.
    pub fn adopt(socket: std::os::unix::net::UnixDatagram) -> io::Result<NotifySocket> {
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        Ok(NotifySocket { socket })
    }

    /// Returns the descriptor of the socket, which systemd keeps for the next manager.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits until a process reports that it is ready, and returns the number of the process.
    /// Cancel-safe.
    pub async fn ready(&self) -> io::Result<u32> {
        loop {
            self.socket.readable().await?;
            match self
                .socket
                .try_io(Interest::READABLE, || receive(&self.socket))
            {
                Ok(Some((pid, message))) if says_ready(&message) => return Ok(pid),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reads a message and the number of the process that sent it. Returns `None` if the message is too
/// long or its sender is unknown.
fn receive(socket: &UnixDatagram) -> io::Result<Option<(u32, Vec<u8>)>> {
    let mut bytes = vec![0; LONGEST_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(
        socket.as_fd(),
        buffers,
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    // Descriptors that a sender attaches are dropped here, which closes them.
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => {
            Some(credentials.pid.as_raw_nonzero().get().cast_unsigned())
        }
        _ => None,
    });
    bytes.truncate(received.bytes);
    let whole = !received.flags.contains(ReturnFlags::TRUNC);
    Ok(sender.filter(|_| whole).map(|pid| (pid, bytes)))
}

fn says_ready(message: &[u8]) -> bool {
    message
        .split(|&byte| byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_sender_of_readiness_is_known_and_other_messages_are_not_readiness() {
        let folder = tempfile::tempdir().unwrap();
        let notify = NotifySocket::bind(folder.path()).unwrap();
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        socket.connect(NotifySocket::path(folder.path())).unwrap();
        socket.send(b"STATUS=READY=1").unwrap();
        socket.send(&vec![b'\n'; LONGEST_MESSAGE + 1]).unwrap();
        socket.send(b"STATUS=up\nREADY=1\n").unwrap();
        assert_eq!(notify.ready().await.unwrap(), std::process::id());
    }
}
