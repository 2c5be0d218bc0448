//! The room for a body: how many more bytes the body of a request may have. Pure.

use crate::proxy::http::http1::Framing;

/// The room that is left for the body of one request. By default it is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyRoom {
    left: u64,
    exceeded: bool,
}

/// The body of a request is larger than the service allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyTooLarge;

impl Default for BodyRoom {
    fn default() -> BodyRoom {
        BodyRoom {
            left: u64::MAX,
            exceeded: false,
        }
    }
}

impl BodyRoom {
    /// Makes room for `most` bytes of a body. If the framing announces more, the body is too large
    /// at once.
    pub(super) fn new(most: u64, framing: Framing) -> BodyRoom {
        BodyRoom {
            left: most,
            exceeded: matches!(framing, Framing::Length(length) if length > most),
        }
    }

    /// Uses up the room for this many bytes. An error means that the body is too large.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), BodyTooLarge> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.exceeded = true;
                Err(BodyTooLarge)
            }
        }
    }

    /// Returns true if the body was announced or found to be too large.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_announced_too_large_needs_not_come() {
        assert!(BodyRoom::new(9, Framing::Length(10)).is_exceeded());
        assert!(!BodyRoom::new(10, Framing::Length(10)).is_exceeded());
        assert!(!BodyRoom::new(0, Framing::Chunked).is_exceeded());
        assert!(!BodyRoom::default().is_exceeded());
    }

    #[test]
    fn a_body_may_have_its_last_byte_and_no_more() {
        let mut room = BodyRoom::new(10, Framing::Chunked);
        assert_eq!(room.take(9), Ok(()));
        assert_eq!(room.take(1), Ok(()));
        assert_eq!(room.take(0), Ok(()));
        assert!(!room.is_exceeded());
        assert_eq!(room.take(1), Err(BodyTooLarge));
        assert!(room.is_exceeded());
    }
}
