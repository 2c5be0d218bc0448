//! `max_request_body`: how many bytes the body of a request may have.
//!
//! The rule only sets the room. A body that is announced to be larger is refused at once, and one
//! that turns out to be larger is cut off on its way, by whoever passes it on.

use super::body_room::BodyRoom;
use super::rule::{Asked, Rule};
use crate::ipc::{Handling, Route};
use crate::proxy::http::http1::Refusal;

/// The bytes that the body of each request may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BodyLimit {
    most: u64,
}

impl Rule for BodyLimit {
    fn compile(handling: &Handling, _: &[Route]) -> Option<BodyLimit> {
        handling.max_request_body.map(|most| BodyLimit { most })
    }

    fn on_request(&self, asked: &mut Asked<'_, '_>) -> Result<(), Refusal> {
        asked.ruling.room = BodyRoom::new(self.most, asked.head.framing);
        Ok(())
    }
}
