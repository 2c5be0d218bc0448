//! The properties of what a D-Bus client sends, for a fuzz target and for tests: whatever bytes
//! come, and however they are cut into pieces, the same messages reach zbus, none of them is longer
//! than the limit, a call is never left without a place that an answer has freed, and reading waits
//! for nothing but bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use zbus::Message;
use zbus::connection::socket::ReadHalf;
use zbus::message::Type;

use super::calls::Calls;
use super::handshake::{Handshake, welcome};
use super::limits::{HANDSHAKE_BYTES, LONGEST_MESSAGE, OTHERS};
use super::transport::{BoundedReader, Frames};

/// The user of the checks.
const UID: u32 = 1000;

/// Why an expected future is ready at once.
const READY: &str = "nothing but bytes is waited for";

/// Takes bytes as the manager takes those of a client of the private socket or, if the first byte
/// is odd, those of a bus. Panics if a property does not hold.
pub fn bus_input(input: &[u8]) {
    let Some((side, bytes)) = input.split_first() else {
        return;
    };
    let listen = match side % 2 {
        0 => listen_to_client,
        _ => listen_to_bus,
    };
    let whole = listen(bytes, bytes.len().max(1));
    assert_eq!(listen(bytes, 1), whole, "byte by byte");
    assert_eq!(listen(bytes, 7), whole, "in pieces");
}

/// What was heard of a client until it made a fault or went.
#[derive(Debug, Default, PartialEq, Eq)]
struct Conversation {
    /// The answers of the handshake.
    answers: Vec<u8>,
    /// The messages that zbus gets.
    messages: Vec<Vec<u8>>,
}

fn listen_to_client(bytes: &[u8], piece: usize) -> Conversation {
    let mut wire = Wire::new(bytes, piece);
    let handshake = Handshake::new(UID, "f00d".to_owned());
    let welcomed = welcome(&mut wire, handshake).now_or_never().expect(READY);
    let answers = std::mem::take(&mut wire.answers);
    // An empty line, which has two bytes, gets an answer of 18.
    assert!(answers.len() <= 9 * HANDSHAKE_BYTES);
    let Ok(Some(ahead)) = welcomed else {
        let messages = Vec::new();
        return Conversation { answers, messages };
    };
    let shared = [OTHERS.calls_of_user, OTHERS.calls].map(|most| Arc::new(Semaphore::new(most)));
    // Nobody takes what is refused, so nothing waits for that.
    let calls = Arc::new(Calls::of_client(shared.clone()).0);
    let reader = BoundedReader::new(wire, Frames::of_client(ahead), Some(UID), calls.clone());
    let messages = receive_all(reader, |message| answer(&calls, message));
    assert_eq!(shared[0].available_permits(), OTHERS.calls_of_user);
    Conversation { answers, messages }
}

/// Answers a call, as zbus does at the latest when it has read as many as it may.
fn answer(calls: &Calls, message: &Message) {
    let answer = Message::method_return(&message.header()).build(&());
    let answer = answer.expect("every call can be answered");
    assert!(calls.answered_by(&answer).is_some(), "the call is open");
}

fn listen_to_bus(bytes: &[u8], piece: usize) -> Conversation {
    let (calls, _) = Calls::on_bus();
    let wire = Wire::new(bytes, piece);
    let mut reader = BoundedReader::new(wire, Frames::on_bus(), None, Arc::new(calls));
    while reader.is_greeting() {
        let mut bytes = [0; 64];
        let read = reader.recvmsg(&mut bytes).now_or_never().expect(READY);
        if !matches!(read, Ok((1..=64, _))) {
            return Conversation::default();
        }
    }
    Conversation {
        messages: receive_all(reader, |_| {}),
        ..Conversation::default()
    }
}

/// Reads messages until the first fault. `called` gets the calls.
fn receive_all(mut reader: BoundedReader<Wire>, called: impl Fn(&Message)) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    loop {
        let (mut before, mut descriptors) = (Vec::new(), Vec::new());
        let message = reader.receive_message(0, &mut before, &mut descriptors);
        let Ok(message) = message.now_or_never().expect(READY) else {
            return messages;
        };
        assert!(message.data().len() <= LONGEST_MESSAGE);
        assert!(reader.is_between(), "the next message begins");
        // The arguments of methods, and those of the standard interfaces.
        let body = message.body();
        let _ = body.deserialize::<String>();
        let _ = body.deserialize::<(String, String)>();
        if message.message_type() == Type::MethodCall {
            called(&message);
        }
        messages.push(message.data().to_vec());
    }
}

/// A connection on which bytes come in pieces, and which takes every answer.
#[derive(Debug)]
struct Wire {
    bytes: Vec<u8>,
    taken: usize,
    piece: usize,
    answers: Vec<u8>,
}

impl Wire {
    fn new(bytes: &[u8], piece: usize) -> Wire {
        Wire {
            bytes: bytes.to_vec(),
            taken: 0,
            piece,
            answers: Vec::new(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.bytes[self.taken..];
        let length = rest.len().min(self.piece).min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.taken += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answers.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::CALLS_OF_CONNECTION;
    use super::*;

    const BEGIN: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";

    fn calls(count: usize) -> Vec<u8> {
        let call = Message::method_call("/org/smoothserve1", "Dump")
            .interface("org.smoothserve1.Manager")
            .build(&())
            .unwrap();
        call.data().repeat(count)
    }

    #[test]
    fn the_corpus_of_bus_input_holds() {
        crate::corpus::replay("bus_input", bus_input);
    }

    #[test]
    fn a_client_whose_calls_are_answered_is_never_held_up() {
        let bytes = [BEGIN, &calls(3 * CALLS_OF_CONNECTION)].concat();
        let heard = listen_to_client(&bytes, 64);
        assert_eq!(heard.messages.len(), 3 * CALLS_OF_CONNECTION);
    }

    #[test]
    fn a_long_message_ends_a_client_and_not_a_bus() {
        let mut long = calls(1)[..16].to_vec();
        let length = u32::try_from(LONGEST_MESSAGE).unwrap();
        long[4..8].copy_from_slice(&length.to_le_bytes());
        long[12..16].fill(0);
        long.resize(16 + LONGEST_MESSAGE, 0);
        let next = calls(1);
        let behind = [&long[..], &next].concat();
        let heard = listen_to_client(&[BEGIN, &behind].concat(), 4096);
        assert_eq!(heard.messages.len(), 0);
        let heard = listen_to_bus(&[b"OK f00d\r\n", &behind[..]].concat(), 4096);
        assert_eq!(heard.messages.len(), 1);
        assert_eq!(heard.messages, [next]);
    }
}
