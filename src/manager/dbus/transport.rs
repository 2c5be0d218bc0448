//! The transport below zbus: a unix socket that reads messages up to a size, lets a bounded number
//! of calls in, and gives up on a client that does not read.
//!
//! The sockets of zbus would make room for 128 MiB as soon as a client announces a message of that
//! size, read calls without an end, keep the descriptors that come with them, and wait forever for
//! a reader. These here read the head of a message themselves, before zbus sees it. They read
//! without room for descriptors, so the kernel closes those that a client sends along.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use zbus::Message;
use zbus::connection::socket::{BoxedSplit, ReadHalf, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

use super::calls::Calls;
use super::complete::complete;
use super::limits::{LONGEST_MESSAGE, SLOWEST_READER};
use crate::log_pace::LogPace;

/// The size of a message's fixed head.
const HEAD: usize = 16;

/// The bit in a call's flags that says that the caller wants no answer.
const NO_ANSWER: u8 = 1;

static TOO_LONG: LogPace = LogPace::new();
static SLOW: LogPace = LogPace::new();

/// Makes the socket of a client on the private socket. `ahead` are the bytes after the handshake
/// that were read with it.
pub(super) fn of_client(socket: UnixStream, ahead: Vec<u8>, uid: u32, calls: Calls) -> BoxedSplit {
    transport(socket, Frames::of_client(ahead), Some(uid), calls)
}

/// Makes the socket of a connection to a bus, before its handshake.
pub(super) fn on_bus(socket: UnixStream, calls: Calls) -> BoxedSplit {
    transport(socket, Frames::on_bus(), None, calls)
}

fn transport(socket: UnixStream, frames: Frames, uid: Option<u32>, calls: Calls) -> BoxedSplit {
    let (from, to) = socket.into_split();
    let calls = Arc::new(calls);
    let reader = BoundedReader::new(from, frames, uid, calls.clone());
    let writer = Writer {
        socket: to,
        uid,
        calls,
    };
    Split::new(Box::new(reader), Box::new(writer))
}

/// What bytes come from: a socket, or what a check has in its place.
pub(super) trait ByteSource:
    AsyncRead + Unpin + Send + Sync + std::fmt::Debug + 'static
{
}

impl<S: AsyncRead + Unpin + Send + Sync + std::fmt::Debug + 'static> ByteSource for S {}

/// The reading half: messages that are not too long, and calls that have a place.
#[derive(Debug)]
pub(super) struct BoundedReader<S> {
    frames: FrameReader<S>,
    calls: Arc<Calls>,
}

impl<S: ByteSource> BoundedReader<S> {
    /// Makes the reading half of a connection to the client of a user, or to a bus (`None`).
    pub(super) fn new(
        source: S,
        frames: Frames,
        uid: Option<u32>,
        calls: Arc<Calls>,
    ) -> BoundedReader<S> {
        BoundedReader {
            frames: FrameReader {
                source,
                frames,
                uid,
            },
            calls,
        }
    }

    /// Returns true if the handshake with the bus has not ended.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn is_greeting(&self) -> bool {
        self.frames.frames.is_greeting
    }

    /// Returns true if what was read ends with the end of a message.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn is_between(&self) -> bool {
        self.frames.frames.is_between()
    }
}

#[async_trait]
impl<S: ByteSource> ReadHalf for BoundedReader<S> {
    async fn receive_message(
        &mut self,
        seq: u64,
        bytes: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        loop {
            let message = self.frames.receive_message(seq, bytes, descriptors).await;
            match message {
                Ok(message) => {
                    let message = complete(message);
                    let is_answered = self.frames.frames.is_answered;
                    if self.calls.admit(&message, is_answered).await {
                        return Ok(message);
                    }
                }
                // The messages of all others come through this connection, too, so a message that
                // zbus does not understand must not end it.
                Err(error) if self.frames.is_shared() && !is_io(&error) => {
                    tracing::debug!(error = %error, "a message over a bus is not understood");
                    self.frames.skip().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.frames.recvmsg(buffer).await
    }
}

fn is_io(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(_))
}

/// The reading half below the calls: bytes that never leave the bounds of a message.
#[derive(Debug)]
struct FrameReader<S> {
    source: S,
    frames: Frames,
    uid: Option<u32>,
}

impl<S: ByteSource> FrameReader<S> {
    /// Returns true if more than one client speaks through the connection.
    fn is_shared(&self) -> bool {
        self.uid.is_none()
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.frames.ahead.is_empty() {
            return self.source.read(buffer).await;
        }
        let length = buffer.len().min(self.frames.ahead.len());
        buffer[..length].copy_from_slice(&self.frames.ahead[..length]);
        self.frames.ahead.drain(..length);
        Ok(length)
    }

    /// Reads the head of the next message. Returns false at the end of the connection.
    async fn next_head(&mut self) -> io::Result<bool> {
        loop {
            let mut head = [0; HEAD];
            let mut filled = 0;
            while filled < HEAD {
                match self.read(&mut head[filled..]).await? {
                    0 => return Ok(false),
                    length => filled += length,
                }
            }
            if self.frames.begin(head)? {
                return Ok(true);
            }
            if let Some(count) = TOO_LONG.due() {
                tracing::warn!(
                    uid = self.uid,
                    count,
                    "a D-Bus message is too long, not read"
                );
            }
            if !self.is_shared() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.skip().await?;
        }
    }

    /// Reads the rest of the current message and forgets it.
    async fn skip(&mut self) -> io::Result<()> {
        let mut scratch = [0; 4 << 10];
        self.frames.given = HEAD;
        while self.frames.left > 0 {
            let most = scratch.len().min(self.frames.left);
            match self.read(&mut scratch[..most]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.frames.left -= length,
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<S: ByteSource> ReadHalf for FrameReader<S> {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let length = if self.frames.is_greeting {
            // The bus answers the handshake with one line, and messages follow it at once.
            let length = self.read(&mut buffer[..1]).await?;
            self.frames.is_greeting = buffer[..length] != *b"\n";
            length
        } else if self.frames.is_between() && !self.next_head().await? {
            0
        } else if let Some(rest) = self.frames.rest_of_head() {
            let length = buffer.len().min(rest.len());
            buffer[..length].copy_from_slice(&rest[..length]);
            self.frames.given += length;
            length
        } else {
            let most = buffer.len().min(self.frames.left);
            let length = self.read(&mut buffer[..most]).await?;
            self.frames.left -= length;
            length
        };
        Ok((length, Vec::new()))
    }
}

/// Where the messages in a stream of bytes begin and end.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes that were read before their turn.
    ahead: Vec<u8>,
    /// The handshake with the bus has not ended.
    is_greeting: bool,
    head: [u8; HEAD],
    /// How many bytes of the head zbus has got.
    given: usize,
    /// How many bytes follow until the end of the message.
    left: usize,
    /// Whether the caller wants an answer to the message.
    is_answered: bool,
}

impl Frames {
    /// Begins with a client whose handshake has ended. `ahead` are the bytes after it that were
    /// read with it.
    pub(super) fn of_client(ahead: Vec<u8>) -> Frames {
        Frames {
            ahead,
            is_greeting: false,
            head: [0; HEAD],
            given: HEAD,
            left: 0,
            is_answered: true,
        }
    }

    /// Begins with a bus, before the handshake.
    pub(super) fn on_bus() -> Frames {
        Frames {
            is_greeting: true,
            ..Frames::of_client(Vec::new())
        }
    }

    fn is_between(&self) -> bool {
        self.given == HEAD && self.left == 0
    }

    fn rest_of_head(&self) -> Option<&[u8]> {
        Some(&self.head[self.given..]).filter(|rest| !rest.is_empty())
    }

    /// Takes in the head of a message. Returns false if the message is too long to be read.
    ///
    /// zbus answers every call, so that all calls end in the same way: the flag of a caller that
    /// wants no answer is kept here, and the writing half drops the answer.
    fn begin(&mut self, head: [u8; HEAD]) -> io::Result<bool> {
        let number = |at: usize| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            match head[0] {
                b'l' => Ok(u32::from_le_bytes(bytes)),
                b'B' => Ok(u32::from_be_bytes(bytes)),
                _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
            }
        };
        let (body, fields) = (u64::from(number(4)?), u64::from(number(12)?));
        let left = fields.next_multiple_of(8) + body;
        self.left = usize::try_from(left).map_err(io::Error::other)?;
        self.head = head;
        self.head[2] &= !NO_ANSWER;
        self.is_answered = head[2] & NO_ANSWER == 0;
        self.given = 0;
        Ok(HEAD + self.left <= LONGEST_MESSAGE)
    }
}

/// The writing half: it waits only for a while until a message is read.
#[derive(Debug)]
struct Writer {
    socket: OwnedWriteHalf,
    uid: Option<u32>,
    calls: Arc<Calls>,
}

#[async_trait]
impl WriteHalf for Writer {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        // The call keeps its place until its answer is written.
        let call = self.calls.answered_by(message);
        if call.as_ref().is_some_and(|call| !call.is_answered) {
            return Ok(());
        }
        let written = self.socket.write_all(message.data());
        match tokio::time::timeout(SLOWEST_READER, written).await {
            Ok(written) => Ok(written?),
            Err(_) => {
                if let Some(count) = SLOW.due() {
                    tracing::warn!(
                        uid = self.uid,
                        count,
                        "a D-Bus client does not read, closing its connection"
                    );
                }
                // The reading half notices the end, and all that belongs to the connection goes.
                rustix::net::shutdown(self.socket.as_ref().as_fd(), Shutdown::Both)
                    .map_err(io::Error::from)?;
                Err(io::Error::from(io::ErrorKind::TimedOut).into())
            }
        }
    }

    async fn sendmsg(
        &mut self,
        buffer: &[u8],
        _: &[std::os::fd::BorrowedFd<'_>],
    ) -> io::Result<usize> {
        self.socket.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }
}
