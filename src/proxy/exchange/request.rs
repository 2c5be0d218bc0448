//! An admitted request: the service that will answer it, and what an instance will get.

use std::rc::Rc;

use super::outgoing::Outgoing;
use super::reply::Reply;
use crate::ipc::EndpointId;
use crate::proxy::http::headers::{RequestSender, request_id, write_request};
use crate::proxy::http::http1::{LONGEST_REQUEST_HEAD, Refusal, RequestHead, slots, too_long};
use crate::proxy::http::request_id::RequestId;
use crate::proxy::net::buffer::Buffer;
use crate::proxy::policy::compiled::ask;
use crate::proxy::policy::denial::Denial;
use crate::proxy::policy::rule::Ruling;
use crate::proxy::view::listener::ListenerView;
use crate::proxy::view::service::ServiceView;

/// About how many bytes the head of a request gains on its way to an instance.
const ADDED: usize = 240;

/// A request whose head was read, checked, routed and written for an instance.
pub(crate) struct Request {
    pub(crate) id: RequestId,
    /// The service that answers the request; `None` if no service has its host and path.
    pub(crate) service: Option<Rc<ServiceView>>,
    /// The instance that the request was last sent to, for log messages.
    pub(crate) instance: Option<EndpointId>,
    pub(crate) reply: Reply,
    pub(crate) outgoing: Outgoing,
    /// The protocol that the client wants to switch to.
    pub(crate) upgrade: Option<Rc<[u8]>>,
    /// True if the request proves an identity that then belongs to its connection.
    pub(crate) binds_connection: bool,
    /// The response, if a rule of the service denies the request.
    pub(crate) denial: Option<Box<Denial>>,
}

impl Request {
    /// Returns the name of the service for log messages; empty if there is no service.
    pub(crate) fn service_name(&self) -> &str {
        self.service.as_ref().map_or("", |service| service.name())
    }

    /// Returns true if a failure of this request may be logged now; each service has a limit for
    /// that.
    pub(crate) fn may_log_failure(&self) -> bool {
        let service = self.service.as_ref();
        service.is_none_or(|service| service.may_log_failure())
    }

    /// Takes the head of a request out of the buffer, and makes the head for an instance from it;
    /// `None` if the head is not complete yet.
    pub(crate) fn admit(
        buffer: &mut Buffer,
        listener: &ListenerView,
        sender: RequestSender<'_>,
    ) -> Result<Option<Request>, Refusal> {
        // Lives longer than the head, which may borrow it.
        let rewritten;
        let mut slots = slots();
        let Some(mut head) = RequestHead::parse(buffer.unread(), &mut slots)? else {
            return Ok(None);
        };
        if head.length > LONGEST_REQUEST_HEAD {
            return Err(too_long(buffer.unread()));
        }
        let mut ruling = Ruling::default();
        let mut policy = None;
        let mut service = None;
        if let Some((found, routed)) = listener.route(head.host_name(), head.path())? {
            if let Some(path) = routed.rewritten {
                rewritten = head.with_path(path)?;
                head.target = &rewritten;
            }
            if let Some(rules) = found.policy() {
                let (ruled, after) = ask(rules, &mut head, sender, routed.strip)?;
                (ruling, policy) = (ruled, Some(after));
            }
            service = Some(found);
        }
        let mut bytes = Vec::with_capacity(head.length + ADDED);
        let id = request_id(&head, sender);
        write_request(&head, sender, &id, &mut bytes);
        let is_idempotent = head.is_idempotent();
        let mut request = Request {
            id,
            service,
            instance: None,
            reply: Reply {
                to_head: head.method == "HEAD",
                to_trusted: sender.trusted,
                version: head.version,
                keep_alive: head.keep_alive,
                policy,
            },
            outgoing: Outgoing::new(bytes, head.framing, is_idempotent, ruling.room),
            upgrade: head.upgrade.map(Rc::from),
            binds_connection: head.binds_connection,
            denial: ruling.denial,
        };
        let (expects_continue, length) = (head.expects_continue, head.length);
        buffer.consume(length);
        // A client that has already sent bytes of the body does not wait for permission.
        request.outgoing.awaits_permission = expects_continue && buffer.is_empty();
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::ipc::ListenerId;
    use crate::proxy::http::http1::Framing;
    use crate::proxy::net::socket::Socket;
    use crate::proxy::view::listener::Routes;

    /// Returns what an instance would get for this head; `None` if it is refused or not complete.
    fn admitted(head: &str) -> Option<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            theirs.write_all(head.as_bytes()).await.unwrap();
            let mut buffer = Buffer::default();
            buffer.fill(&Socket::opened(ours)).await.unwrap();
            let address = ([127, 0, 0, 1], 80).into();
            let listener = ListenerView::new(ListenerId(1), address, Routes::default());
            let sender = RequestSender {
                address: "192.0.2.1",
                secure: false,
                trusted: false,
                forwarded: false,
            };
            let request = Request::admit(&mut buffer, &listener, sender).ok()??;
            Some(request.outgoing.kept().to_vec())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever a client sends, an instance with a strict parser sees exactly one head, with
        /// one host and with the framing that the client has announced.
        #[test]
        fn an_instance_sees_one_request(
            line in "(GET|POST|OPTIONS) (/|/x\\?y=/|\\*|http://b) HTTP/1\\.[01]",
            fields in prop::collection::vec(
                "(Host: (a|b:1)?|Content-Length: 0?[0-9]|Transfer-Encoding: chunked|Transfer_Encoding: chunked\
                 |Connection: (close|host|content-length|x|te)|TE: trailers|Expect: 100-continue|X: [ -~]{0,9}\
                 |[a-zA-Z_-]{1,4} ?: ?[ -~]{0,4}|X-Forwarded-For: 1, 2)",
                0..6,
            ),
            ends in prop::collection::vec("\r?\n", 8),
        ) {
            let lines = std::iter::once(&line).chain(&fields).zip(&ends);
            let head: String = lines.map(|(line, end)| format!("{line}{end}")).collect();
            let head = head + &ends[7];
            let mut theirs = slots();
            let Ok(Some(client)) = RequestHead::parse(head.as_bytes(), &mut theirs) else {
                prop_assert_eq!(admitted(&head), None);
                return Ok(());
            };
            let mut out = admitted(&head).unwrap();
            if client.host.is_empty() {
                // A client may not send an empty host. An instance gets one if the client named
                // none.
                let text = String::from_utf8(out).unwrap();
                out = text.replacen("\r\nHost: \r\n", "\r\nHost: none\r\n", 1).into_bytes();
            }
            prop_assert!(!out.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'));
            let mut ours = slots();
            let seen = RequestHead::parse(&out, &mut ours).unwrap().unwrap();
            prop_assert_eq!(seen.length, out.len());
            prop_assert_eq!(seen.framing, client.framing);
            let host = if client.host.is_empty() { b"none" } else { client.host };
            prop_assert_eq!((seen.method, seen.target, seen.host), (client.method, client.target, host));
            prop_assert!(client.framing != Framing::UntilClose);
        }
    }
}
