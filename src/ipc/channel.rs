//! The channel: framed messages over a unix stream socket, each with at most one file descriptor.
//!
//! A descriptor travels with the first byte of its frame.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::frames::{self, FrameBuffer, FrameError, WireMessage};

/// The most descriptors that wait for the messages they belong to.
const MOST_WAITING_DESCRIPTORS: usize = 64;

/// Why a channel failed. Each of these ends the connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer sent something that is not a message, or a message is too long.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent descriptors without end.
    #[error("more descriptors than messages")]
    TooManyDescriptors,
}

/// One end of the connection between a manager and a worker.
pub struct Channel;

impl Channel {
    /// Splits a connected socket into its two directions. Must run inside a tokio runtime.
    pub fn split<Out: WireMessage, In: WireMessage>(
        socket: std::os::unix::net::UnixStream,
    ) -> io::Result<(MessageSender<Out>, MessageReceiver<In>)> {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UnixStream::from_std(socket)?);
        let sender = MessageSender {
            socket: socket.clone(),
            messages: PhantomData,
        };
        let receiver = MessageReceiver {
            socket,
            frames: FrameBuffer::default(),
            descriptors: VecDeque::new(),
            messages: PhantomData,
        };
        Ok((sender, receiver))
    }
}

/// The sending direction of a channel.
pub struct MessageSender<Out> {
    socket: Arc<UnixStream>,
    messages: PhantomData<fn(Out)>,
}

impl<Out: WireMessage> MessageSender<Out> {
    /// Sends one message. Not cancel-safe: a message must be sent to its end.
    pub async fn send(
        &mut self,
        message: &Out,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ChannelError> {
        let frame = frames::encode(message)?;
        let mut descriptor = descriptor;
        let mut sent = 0;
        while sent < frame.len() {
            self.socket.writable().await?;
            let attempt = self.socket.try_io(Interest::WRITABLE, || {
                Ok(send_some(&self.socket, &frame[sent..], descriptor)?)
            });
            match attempt {
                Ok(count) => {
                    sent += count;
                    descriptor = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn send_some(
    socket: &UnixStream,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = descriptor.as_ref() {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(
            descriptor,
        )));
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
}

/// The receiving direction of a channel.
pub struct MessageReceiver<In> {
    socket: Arc<UnixStream>,
    frames: FrameBuffer,
    descriptors: VecDeque<OwnedFd>,
    messages: PhantomData<fn() -> In>,
}

impl<In: WireMessage> MessageReceiver<In> {
    /// Waits for the next message. `None`: the peer has closed the connection. Cancel-safe.
    pub async fn receive(&mut self) -> Result<Option<In>, ChannelError> {
        self.receive_as(frames::decode).await
    }

    /// Waits for the next message, which `read` understands. `None`: the peer has closed the
    /// connection. Cancel-safe.
    pub async fn receive_as(
        &mut self,
        mut read: impl FnMut(&[u8]) -> Result<In, FrameError>,
    ) -> Result<Option<In>, ChannelError> {
        loop {
            if let Some(message) = self.frames.next(&mut read)? {
                return Ok(Some(message));
            }
            self.socket.readable().await?;
            let attempt = self
                .socket
                .try_io(Interest::READABLE, || receive_some(&self.socket));
            let (bytes, descriptors) = match attempt {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                result => result?,
            };
            if bytes.is_empty() {
                return Ok(None);
            }
            self.frames.extend(&bytes);
            self.descriptors.extend(descriptors);
            if self.descriptors.len() > MOST_WAITING_DESCRIPTORS {
                return Err(ChannelError::TooManyDescriptors);
            }
        }
    }

    /// Takes the oldest descriptor that has arrived. Must be called once for each message that
    /// comes with a descriptor.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

fn receive_some(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    bytes.truncate(received.bytes);
    Ok((bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{FromWorker, Handling, ListenerId, ToWorker, WireService, WireTable};

    fn pair() -> (MessageSender<ToWorker>, MessageReceiver<ToWorker>) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, _) = Channel::split::<ToWorker, FromWorker>(ours).unwrap();
        let (_, receiver) = Channel::split::<FromWorker, ToWorker>(theirs).unwrap();
        (sender, receiver)
    }

    #[tokio::test]
    async fn messages_and_descriptors_arrive_in_order() {
        let (mut sender, mut receiver) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let table = ToWorker::Table(WireTable {
            number: 7,
            ..WireTable::default()
        });
        sender
            .send(&ToWorker::Listener(ListenerId(1)), Some(file.as_fd()))
            .await
            .unwrap();
        sender.send(&table, None).await.unwrap();
        drop(sender);
        assert_eq!(
            receiver.receive().await.unwrap(),
            Some(ToWorker::Listener(ListenerId(1)))
        );
        assert!(receiver.take_descriptor().is_some());
        assert_eq!(receiver.receive().await.unwrap(), Some(table));
        assert!(receiver.take_descriptor().is_none());
        assert_eq!(receiver.receive().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_socket_buffer_arrives_whole() {
        let (mut sender, mut receiver) = pair();
        let service = Arc::new(WireService {
            name: "x".repeat(100),
            running: true,
            handling: Handling::default(),
            routes: Vec::new(),
            endpoints: Vec::new(),
        });
        let table = ToWorker::Table(WireTable {
            number: 1,
            services: vec![service; 20_000],
            ..WireTable::default()
        });
        let (sent, received) = tokio::join!(sender.send(&table, None), receiver.receive());
        sent.unwrap();
        assert!(received.unwrap() == Some(table));
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused() {
        use std::io::Write;
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (_, mut receiver) = Channel::split::<ToWorker, FromWorker>(theirs).unwrap();
        ours.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(
            receiver.receive().await,
            Err(ChannelError::Frame(FrameError::TooLong(..)))
        ));
    }
}
