//! The interface of a rule: what it sees of a request and of the response, and what it can do.

use std::cell::OnceCell;

use super::body_room::BodyRoom;
use super::denial::Denial;
use crate::ipc::{Handling, Route};
use crate::proxy::http::headers::{RequestSender, is_secure};
use crate::proxy::http::http1::{Refusal, RequestHead, ResponseHead};

/// A rule that the file of a service can set for its requests and their responses.
pub(super) trait Rule: Sized {
    /// Compiles the rule from the service's settings; `None` if the service does not use the rule.
    fn compile(handling: &Handling, routes: &[Route]) -> Option<Self>;

    /// Looks at a request before it is written for an instance. An error means that the request is
    /// malformed.
    fn on_request(&self, _asked: &mut Asked<'_, '_>) -> Result<(), Refusal> {
        Ok(())
    }

    /// Looks at the head of a response, written for the client but not sent yet.
    fn on_response(&self, _answered: &mut Answered<'_, '_>) {}
}

/// A request before an instance gets it, as a rule sees it.
pub(super) struct Asked<'a, 'b> {
    /// The head, which a rule may change.
    pub(super) head: &'a mut RequestHead<'b>,
    sender: RequestSender<'a>,
    /// How many bytes the route of the request strips from the path.
    pub(super) strip: usize,
    over_tls: OnceCell<bool>,
    /// What the rules asked before this one have ruled.
    pub(super) ruling: Ruling,
    /// What the rules note for the time when the response comes.
    pub(super) memo: Memo,
}

/// What all rules of a service together decide about one request.
#[derive(Debug, Default)]
pub(crate) struct Ruling {
    /// If a rule denies the request: the response that the client gets instead of one from an
    /// instance.
    pub(crate) denial: Option<Box<Denial>>,
    /// How many bytes the body may have.
    pub(crate) room: BodyRoom,
}

/// What the rules have noted of a request for its response.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memo {
    /// True if the client used TLS. Only rules that need this note it.
    pub(super) over_tls: bool,
}

/// A response before the client gets it, as a rule sees it.
pub(super) struct Answered<'a, 'b> {
    /// What the rules have noted about the request.
    pub(super) memo: Memo,
    /// The head as the instance has sent it.
    pub(super) head: &'a ResponseHead<'b>,
    /// The head as the client gets it, without the empty line at its end. A rule may add fields.
    pub(super) out: &'a mut Vec<u8>,
}

impl<'a, 'b> Asked<'a, 'b> {
    /// A request about which no rule has been asked yet.
    pub(super) fn new(
        head: &'a mut RequestHead<'b>,
        sender: RequestSender<'a>,
        strip: usize,
    ) -> Asked<'a, 'b> {
        Asked {
            head,
            sender,
            strip,
            over_tls: OnceCell::new(),
            ruling: Ruling::default(),
            memo: Memo::default(),
        }
    }

    /// Returns true if the client used TLS, also if a trusted proxy in front has ended the TLS
    /// connection.
    pub(super) fn is_over_tls(&self) -> bool {
        let is_over_tls = || is_secure(self.head, self.sender);
        *self.over_tls.get_or_init(is_over_tls)
    }

    /// Denies the request, unless another rule has denied it before.
    pub(super) fn deny(&mut self, denial: Denial) {
        self.ruling.denial.get_or_insert_with(|| Box::new(denial));
    }

    /// Returns the ruling and the notes of all rules together.
    pub(super) fn end(self) -> (Ruling, Memo) {
        (self.ruling, self.memo)
    }
}
