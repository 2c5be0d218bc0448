//! The socket on which an instance reports its readiness with the protocol of sd_notify(3).
//!
//! Each instance has a socket of its own, which only the instance's user can write to. The kernel's
//! queue of such a socket is short: in a socket that all users share, a stranger who fills it would
//! keep out the reports of others. Who may write is decided by the mode that the socket has from
//! its first moment on, not by a look at each message.

use std::fs::{DirBuilder, Permissions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SocketAddrUnix, SocketFlags, SocketType, recvmsg, sockopt::set_socket_passcred,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// The prefix of the names under which systemd stores these sockets.
pub const NOTIFY_PREFIX: &str = "notify-";

/// The longest message that is read, in bytes. systemd has the same limit.
const LONGEST_MESSAGE: usize = 4096;

/// The folder of the sockets in the run directory.
const FOLDER: &str = "notify";

/// The socket on which one instance reports its readiness.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    /// The user of the instance.
    owner: u32,
}

/// A message on a notify socket. The kernel vouches for its sender.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification {
    /// The number of the process that sent the message.
    pub pid: u32,
    /// The user that sent the message.
    pub uid: u32,
    /// Whether the message says `READY=1`.
    pub is_ready: bool,
}

/// Returns the path of the socket of instance `id` in a run directory.
pub fn path(run_dir: &Path, id: u64) -> PathBuf {
    run_dir.join(FOLDER).join(id.to_string())
}

/// Returns the name under which systemd stores the socket of instance `id`.
pub fn stored_name(id: u64) -> String {
    format!("{NOTIFY_PREFIX}{id}")
}

impl NotifySocket {
    /// Creates the socket for an instance that runs as user `owner`.
    ///
    /// An instance that starts as root may become another user before it is ready, so every user
    /// can write to its socket.
    pub fn bind(path: &Path, owner: u32) -> io::Result<NotifySocket> {
        let folder = path.parent().unwrap_or(path);
        match DirBuilder::new().mode(0o711).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        // The file gets the mode that the socket has.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        match owner {
            0 => std::fs::set_permissions(path, Permissions::from_mode(0o666))?,
            owner if owner != rustix::process::geteuid().as_raw() => {
                chown(path, Some(owner), None)?;
            }
            _ => {}
        }
        set_socket_passcred(&socket, true)?;
        NotifySocket::new(socket, owner)
    }

    /// Takes over the socket of an instance from an earlier manager. Messages that arrived in
    /// between wait in the socket.
    pub fn adopt(socket: OwnedFd, path: &Path) -> io::Result<NotifySocket> {
        NotifySocket::new(socket, std::fs::metadata(path)?.uid())
    }

    fn new(socket: OwnedFd, owner: u32) -> io::Result<NotifySocket> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(NotifySocket {
            socket: UnixDatagram::from_std(socket)?,
            owner,
        })
    }

    /// Returns the descriptor of the socket, which systemd keeps for the next manager.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for the next message. Messages that are too long or have no sender are skipped.
    /// Cancel-safe.
    pub async fn receive(&self) -> io::Result<Notification> {
        loop {
            self.socket.readable().await?;
            match self
                .socket
                .try_io(Interest::READABLE, || receive(&self.socket))
            {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns true if a user other than the instance's and root has sent the message. An instance
    /// that started as root may have become any user.
    pub fn is_strange(&self, message: &Notification) -> bool {
        self.owner != 0 && message.uid != self.owner && message.uid != 0
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<Option<Notification>> {
    let mut bytes = [0; LONGEST_MESSAGE];
    // There is no room for descriptors, so the kernel closes those that a sender attaches. That is
    // what `systemd-notify` waits for.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(
        socket.as_fd(),
        buffers,
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender),
        _ => None,
    });
    let is_whole = !received.flags.contains(ReturnFlags::TRUNC);
    let message = &bytes[..received.bytes];
    Ok(sender.filter(|_| is_whole).map(|sender| Notification {
        pid: sender.pid.as_raw_nonzero().get().cast_unsigned(),
        uid: sender.uid.as_raw(),
        is_ready: says_ready(message),
    }))
}

fn says_ready(message: &[u8]) -> bool {
    message
        .split(|&byte| byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// Makes a notify socket and a client that is connected to it.
    fn pair() -> (NotifySocket, std::os::unix::net::UnixDatagram) {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), 7);
        let notify = NotifySocket::bind(&path, own()).unwrap();
        let client = std::os::unix::net::UnixDatagram::unbound().unwrap();
        client.connect(&path).unwrap();
        (notify, client)
    }

    #[tokio::test]
    async fn the_sender_of_readiness_is_known_and_other_messages_are_not_readiness() {
        let (notify, socket) = pair();
        socket.send(b"STATUS=READY=1").unwrap();
        socket.send(&vec![b'\n'; LONGEST_MESSAGE + 1]).unwrap();
        socket.send(b"STATUS=up\nREADY=1\n").unwrap();
        let expected = |is_ready| Notification {
            pid: std::process::id(),
            uid: own(),
            is_ready,
        };
        assert_eq!(notify.receive().await.unwrap(), expected(false));
        assert_eq!(notify.receive().await.unwrap(), expected(true));
        assert!(!notify.is_strange(&expected(true)));
    }

    #[tokio::test]
    async fn descriptors_that_come_with_a_message_are_closed() {
        let (notify, client) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let descriptors = [writer.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors));
        let bytes = [io::IoSlice::new(b"BARRIER=1\nREADY=1")];
        rustix::net::sendmsg(
            &client,
            &bytes,
            &mut control,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        drop(writer);
        assert!(notify.receive().await.unwrap().is_ready);
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
    }

    #[tokio::test]
    async fn only_the_user_of_the_instance_can_write() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = path(folder.path(), 7);
        if own() != 0 {
            drop(NotifySocket::bind(&path, own()).unwrap());
            assert_eq!(mode(&path), 0o600);
            return;
        }
        let notify = NotifySocket::bind(&path, 65534).unwrap();
        let place = std::fs::metadata(&path).unwrap();
        assert_eq!((place.uid(), mode(&path)), (65534, 0o600));
        let stranger = Notification {
            pid: 1,
            uid: 1000,
            is_ready: true,
        };
        assert!(notify.is_strange(&stranger));
        let again = NotifySocket::adopt(notify.descriptor().try_clone_to_owned().unwrap(), &path);
        assert!(again.unwrap().is_strange(&stranger));
        let of_root = NotifySocket::bind(&path, 0).unwrap();
        assert_eq!(mode(&path), 0o666);
        assert!(!of_root.is_strange(&stranger));
    }
}
