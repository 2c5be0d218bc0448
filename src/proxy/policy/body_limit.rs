//! `max_request_body`: how many bytes the body of a request may have.
//!
//! This rule only sets the room for the body. A body whose announced length is larger is refused at
//! once. A body that turns out to be larger while it is passed on is cut off by the exchange.

use super::body_room::BodyRoom;
use super::rule::{Asked, Rule};
use crate::ipc::{Handling, Route};
use crate::proxy::http::http1::Refusal;

/// How many bytes the body of each request may have.
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
