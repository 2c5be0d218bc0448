//! An HTTP/2 client that sends exactly the frames that a test wants, valid or not.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::kit::PATIENCE;
use crate::peers::Stage;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Flags of the HEADERS frame of a request without a body.
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Returns the error code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Encodes fields in HPACK without its tables and without Huffman codes, so that every byte arrives
/// as it is.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        put_string(name.as_bytes(), &mut block);
        put_string(value.as_bytes(), &mut block);
    }
    block
}

fn put_string(text: &[u8], block: &mut Vec<u8>) {
    let Some(mut rest) = text.len().checked_sub(127) else {
        block.push(text.len() as u8);
        return block.extend(text);
    };
    block.push(127);
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
    block.extend(text);
}

/// Encodes the pseudo-fields of a GET request.
pub(crate) fn get(path: &str) -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "a.example"),
    ])
}

/// What became of a stream, or of the whole connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A response: its status, or 0 if HPACK's static table does not have it, and its body.
    Answer(u16, String),
    Reset(u32),
    GoAway(u32),
    Closed,
}

pub(crate) struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects to the worker with these settings.
    pub(crate) async fn connect(stage: &Stage, settings: &[(u16, u32)]) -> Client {
        let stream = TcpStream::connect(stage.address).await.unwrap();
        Client::over(stream, settings).await
    }

    /// Makes a client of a connection on which nothing was sent yet.
    pub(crate) fn new(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        Client {
            stream,
            received: Vec::new(),
        }
    }

    /// Begins HTTP/2 on a connection to the worker, with these settings.
    pub(crate) async fn over(stream: TcpStream, settings: &[(u16, u32)]) -> Client {
        let mut client = Client::new(stream);
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let bytes = [&preface[..], &frame(SETTINGS, 0, 0, &payload)].concat();
        assert!(client.send(&bytes).await);
        client
    }

    /// Sends bytes; returns `false` if the worker has closed the connection.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let send = self.stream.write_all(bytes);
        let sent = timeout(PATIENCE, send).await;
        sent.expect("the worker takes the bytes in time").is_ok()
    }

    /// Sends bytes again and again, reading nothing, until `most` bytes were sent, the worker takes
    /// no more, or it has closed the connection.
    pub(crate) async fn flood(&mut self, bytes: &[u8], most: usize) {
        let mut sent = 0;
        while sent < most {
            match timeout(Duration::from_secs(1), self.stream.write_all(bytes)).await {
                Ok(Ok(())) => sent += bytes.len(),
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Waits for the next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let receive = async {
            loop {
                if let Some(frame) = self.take() {
                    return Some(frame);
                }
                match self.stream.read_buf(&mut self.received).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        timeout(PATIENCE, receive)
            .await
            .expect("a frame comes in time")
    }

    fn take(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.received.get(..9)?.try_into().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.received.get(9..9 + length)?.to_vec();
        self.received.drain(..9 + length);
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
            payload,
        })
    }

    /// Waits for what becomes of a stream.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        let (mut status, mut body) = (0, Vec::new());
        while let Some(frame) = self.next().await {
            match frame.kind {
                GOAWAY if frame.code() != 0 => return Outcome::GoAway(frame.code()),
                SETTINGS if frame.flags & ACK == 0 => {
                    self.send(&self::frame(SETTINGS, ACK, 0, b"")).await;
                }
                RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                HEADERS if frame.stream == stream => status = known_status(frame.payload[0]),
                DATA if frame.stream == stream => body.extend(&frame.payload),
                _ => {}
            }
            let is_last = [HEADERS, DATA].contains(&frame.kind) && frame.flags & END_STREAM != 0;
            if is_last && frame.stream == stream {
                return Outcome::Answer(status, String::from_utf8(body).unwrap());
            }
        }
        Outcome::Closed
    }
}

/// The statuses of HPACK's static table: RFC 7541, appendix A.
fn known_status(first: u8) -> u16 {
    match first {
        0x88 => 200,
        0x89 => 204,
        0x8a => 206,
        0x8b => 304,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        _ => 0,
    }
}
