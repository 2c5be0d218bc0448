//! A request that was let in: who is to answer it, and what the instance will get.

use std::rc::Rc;

use super::buffer::Buffer;
use super::download::Reply;
use super::headers::{Sender, write_request};
use super::http1::{Refusal, RequestHead, slots};
use super::listener::Listener;
use super::service::Service;
use super::upload::Outgoing;
use crate::ipc::EndpointId;

/// Bytes of a request's head.
pub(crate) const LONGEST_HEAD: usize = 32 << 10;

/// What is added to a head, roughly.
const ADDED: usize = 192;

/// A request whose head is done with.
pub(crate) struct Request {
    /// Who answers it; `None` if there is nobody.
    pub(crate) service: Option<Rc<Service>>,
    /// The instance that was asked last, for messages.
    pub(crate) instance: Option<EndpointId>,
    pub(crate) reply: Reply,
    pub(crate) outgoing: Outgoing,
}

impl Request {
    /// The name of the service, for messages.
    pub(crate) fn service_name(&self) -> &str {
        self.service.as_ref().map_or("", |service| service.name())
    }

    /// Takes the head of a request out of the buffer and makes of it the head for an instance; `None` if its end is not
    /// there yet.
    pub(crate) fn admit(
        buffer: &mut Buffer,
        listener: &Listener,
        sender: Sender<'_>,
    ) -> Result<Option<Request>, Refusal> {
        let mut slots = slots();
        let Some(head) = RequestHead::parse(buffer.unread(), &mut slots)? else {
            return Ok(None);
        };
        if head.length > LONGEST_HEAD {
            return Err(Refusal::HeadTooLarge);
        }
        let mut bytes = Vec::with_capacity(head.length + ADDED);
        write_request(&head, sender, &mut bytes);
        let mut request = Request {
            service: listener.route(head.host_name(), head.path()),
            instance: None,
            reply: Reply {
                to_head: head.method == "HEAD",
                version: head.version,
                keep_alive: head.keep_alive,
            },
            outgoing: Outgoing::new(bytes, head.framing, head.is_idempotent()),
        };
        let (expects_continue, length) = (head.expects_continue, head.length);
        buffer.consume(length);
        // A client that has not waited needs no permission.
        request.outgoing.awaits_permission = expects_continue && buffer.is_empty();
        Ok(Some(request))
    }
}
