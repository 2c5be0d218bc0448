//! Frames: messages as bytes, without the socket that carries them.
//!
//! A frame is a little-endian `u32` length and that many bytes of JSON.

use serde::{Serialize, de::DeserializeOwned};

use super::message::{FromWorker, ToWorker};

/// The size of a frame's length.
const HEAD: usize = 4;

/// The most bytes of room that an empty buffer keeps.
const KEPT_ROOM: usize = 256 << 10;

/// Why bytes are no frame, or a message cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not a message.
    #[error("malformed message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The message has, or announces, more bytes than its receiver takes.
    #[error("message of {0} bytes, over the limit of {1}")]
    TooLong(usize, usize),
}

/// A message that can be sent as a frame.
pub trait WireMessage: Serialize + DeserializeOwned {
    /// The longest frame that its receiver takes, in bytes.
    const LONGEST: usize;
}

/// A table of many thousand services fits.
impl WireMessage for ToWorker {
    const LONGEST: usize = 64 << 20;
}

/// The counts of 50,000 instances fit. Every other message has less than 2 KiB.
impl WireMessage for FromWorker {
    const LONGEST: usize = 8 << 20;
}

/// Returns the frame of a message.
pub(super) fn encode<M: WireMessage>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEAD;
    if length > M::LONGEST {
        return Err(FrameError::TooLong(length, M::LONGEST));
    }
    let head = u32::try_from(length).expect("bounded above").to_le_bytes();
    frame[..HEAD].copy_from_slice(&head);
    Ok(frame)
}

/// Reads the content of a frame as a message of this build's version.
pub(super) fn decode<M: WireMessage>(frame: &[u8]) -> Result<M, FrameError> {
    Ok(serde_json::from_slice(frame)?)
}

/// The bytes that were received and are no whole message yet.
#[derive(Debug, Default)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
    /// How many bytes at the beginning were taken already.
    taken: usize,
}

impl FrameBuffer {
    /// Adds bytes that were received. All messages before them should have been taken.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_ROOM {
            self.bytes = Vec::new();
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next message as `read` understands it, or returns `None` if it is not complete
    /// yet.
    pub(super) fn next<M: WireMessage>(
        &mut self,
        read: impl FnOnce(&[u8]) -> Result<M, FrameError>,
    ) -> Result<Option<M>, FrameError> {
        let waiting = &self.bytes[self.taken..];
        let Some((head, rest)) = waiting.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*head) as usize;
        if length > M::LONGEST {
            return Err(FrameError::TooLong(length, M::LONGEST));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let message = read(frame)?;
        self.taken += HEAD + length;
        Ok(Some(message))
    }

    /// Returns how many bytes wait.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_message_leaves_no_room_behind() {
        let mut buffer = FrameBuffer::default();
        let large = FromWorker::Counts {
            connections: 0,
            bounds: crate::ipc::BoundCounts::default(),
            endpoints: vec![
                crate::ipc::EndpointCounts {
                    id: crate::ipc::EndpointId(1),
                    in_flight: 0,
                    tunnels: 0,
                    requests: 0,
                    failures: 0,
                };
                20_000
            ],
        };
        buffer.extend(&encode(&large).unwrap());
        assert_eq!(buffer.next(decode).unwrap(), Some(large));
        let small = encode(&FromWorker::Pong(1)).unwrap();
        buffer.extend(&small);
        assert!(buffer.bytes.capacity() <= KEPT_ROOM);
        assert_eq!(buffer.next(decode).unwrap(), Some(FromWorker::Pong(1)));
    }
}
