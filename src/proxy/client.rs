//! One client connection.
//!
//! # Theory of operation
//! A connection is idle until bytes come; then its requests are served one after the other, and the answers are sent in
//! that order. The part that serves a request lives in memory of its own, so that an idle connection takes little, and
//! one that stays idle is parked, which takes still less.
//!
//! How a connection ends:
//! * While idle: when the client closes, after [`CLIENT_IDLE_LIMIT`], or when the worker drains and idle connections have had
//!   their time. Until then a draining worker, or a listener that was removed, waits for one more request, whose
//!   response tells the client that it is the last; a close at any moment could meet a request on its way.
//! * After a response that says so, when the client may have sent more than was read: our side is closed first and the
//!   rest is read for a while, for a close with unread bytes is a reset, which can destroy the response before the
//!   client has read it (RFC 9112, section 9.6).
//! * In the middle of a response that cannot be completed: at once, so that the client cannot take it for whole.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use rustls::ServerConfig;

use super::drain::Drain;
use super::error::{ProxyError, write_error};
use super::forward::forward;
use super::http2;
use super::listener::ListenerView;
use super::request::Request;
use super::view::View;
use crate::proxy::http::headers::{Persistence, RequestSender};
use crate::proxy::http::http1::{LONGEST_REQUEST_HEAD, Refusal, Version};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::linger::linger;
use crate::proxy::net::proxy_protocol::{NoProxyHeader, ProxyHeader};
use crate::proxy::net::send::Sendable;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::timer::Timer;
use crate::proxy::net::tls;
use crate::proxy::net::transport::Transport;
use crate::proxy::net::turn;

/// How long a connection may wait for its next request.
pub(crate) const CLIENT_IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long an idle connection keeps its task: most requests of a browser follow one another closely.
pub(crate) const PARK_AFTER: Duration = Duration::from_secs(2);

/// How long a client may neither send nor take anything, while one of that is waited for.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// How long a head may take from its first byte on.
const HEAD_LIMIT: Duration = Duration::from_secs(15);

/// How long a trusted proxy may take to say whose connection it is. It does so at once, unless a segment is lost.
const PROXY_LIMIT: Duration = Duration::from_secs(10);

/// One client connection.
pub(crate) struct Client {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    pub(crate) timer: Timer,
    pub(crate) peer: Rc<Peer>,
}

/// Who is on the other side, and which side that is.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The IP address as instances are told it.
    text: Box<str>,
    pub(crate) listener: Rc<ListenerView>,
    pub(crate) view: Rc<View>,
    pub(crate) drain: Rc<Drain>,
}

/// What becomes of a connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another request may come.
    Request,
    /// The client will send nothing more, or is gone.
    Close,
    /// It may have sent more, and must be able to read its response.
    Linger,
    /// It must not take what it has got for a response.
    Reset,
}

/// How a wait for the next bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// They are there.
    Received,
    /// It was long.
    Long,
    /// There will be none, or they are not waited for.
    Over,
}

/// Serves a new connection, to its end or until it is to be parked; then it is returned. It is on the heap because a task
/// has memory for what it is given and for what it works with, and this would be both.
pub(crate) async fn serve(mut client: Box<Client>) -> Option<Box<Client>> {
    if client.peer.listener.has_proxy_protocol() && !Box::pin(client.read_proxy_header()).await {
        return None;
    }
    if let Some(config) = client.peer.listener.tls() {
        client = Box::pin(client.secure(config)).await?;
    }
    if client.buffer.is_empty() && client.wait(CLIENT_IDLE_LIMIT).await != Waited::Received {
        return None;
    }
    if http2::is_begun(&client) {
        Box::pin(http2::serve(*client)).await;
        return None;
    }
    serve_requests(client).await
}

/// Serves the requests of a connection with HTTP/1, the same way.
pub(crate) async fn serve_requests(mut client: Box<Client>) -> Option<Box<Client>> {
    let limit = match client.stream.as_socket() {
        Some(_) => PARK_AFTER,
        None => CLIENT_IDLE_LIMIT,
    };
    loop {
        client.skip_empty_lines();
        if client.buffer.is_empty() {
            match client.wait(limit).await {
                Waited::Received => {}
                Waited::Long if limit < CLIENT_IDLE_LIMIT => return Some(client),
                Waited::Long | Waited::Over => return None,
            }
        }
        match Box::pin(client.serve_request()).await {
            Next::Request => {}
            Next::Close => return None,
            Next::Linger => {
                Box::pin(client.linger()).await;
                return None;
            }
            Next::Reset => {
                // If that fails, the connection is gone already.
                let _ = client.stream.reset_on_close();
                return None;
            }
        }
    }
}

impl Peer {
    /// The peer at `address`, which has connected to `listener`.
    pub(crate) fn new(
        address: SocketAddr,
        listener: Rc<ListenerView>,
        view: Rc<View>,
        drain: Rc<Drain>,
    ) -> Peer {
        Peer {
            address,
            text: address.ip().to_string().into(),
            listener,
            view,
            drain,
        }
    }

    /// The peer at `source`, for which this one, a proxy in front, has connected.
    pub(crate) fn in_place_of(&self, source: SocketAddr) -> Peer {
        let (view, drain) = (self.view.clone(), self.drain.clone());
        Peer::new(source, self.listener.clone(), view, drain)
    }

    /// Returns true if the connection is to end with the present response.
    pub(crate) fn closing(&self) -> bool {
        self.drain.has_begun() || self.listener.closing()
    }
}

impl Client {
    pub(crate) fn new(stream: Stream, peer: Rc<Peer>) -> Client {
        Client {
            stream,
            buffer: Buffer::default(),
            timer: Timer::new(CLIENT_IDLE_LIMIT),
            peer,
        }
    }

    /// Serves the one request of a stream of HTTP/2. How the stream ends is its own matter.
    pub(crate) async fn serve_stream(&mut self) {
        self.serve_request().await;
    }

    /// Learns from a trusted proxy whose connection this is. False if the connection is to be closed.
    async fn read_proxy_header(&mut self) -> bool {
        if !self.peer.view.trusts(self.peer.address.ip()) {
            tracing::debug!(client_addr = %self.peer.address, "connection refused, it is not from a trusted proxy");
            return false;
        }
        self.timer.set(PROXY_LIMIT);
        let header = loop {
            match ProxyHeader::parse(self.buffer.unread()) {
                Ok(Some(header)) => break header,
                Ok(None) => {}
                Err(error) => {
                    self.peer.listener.log_refused(self.peer.address, error);
                    return false;
                }
            }
            let received = self.timer.limit(self.buffer.fill(&self.stream)).await;
            match received {
                Some(Ok(count)) if count > 0 => {}
                // Whoever only looks whether the port is open sends nothing.
                _ if self.buffer.is_empty() => return false,
                _ => {
                    self.peer
                        .listener
                        .log_refused(self.peer.address, NoProxyHeader::CUT);
                    return false;
                }
            }
        };
        self.buffer.consume(header.length);
        if let Some(source) = header.source {
            self.peer = Rc::new(self.peer.in_place_of(source));
        }
        true
    }

    /// Does the handshake of TLS. `None` if the connection is to be closed.
    async fn secure(mut self: Box<Self>, config: Arc<ServerConfig>) -> Option<Box<Client>> {
        let socket = self.stream.into_socket()?;
        match tls::accept(socket, &mut self.buffer, config).await {
            Ok(secure) => Some(Box::new(Client {
                stream: Stream::Transport(Transport::Secure(Box::new(secure))),
                buffer: self.buffer,
                timer: self.timer,
                peer: self.peer,
            })),
            Err(error) => {
                tracing::debug!(client_addr = %self.peer.address, %error, "TLS handshake failed");
                None
            }
        }
    }

    /// Awaits the next bytes.
    async fn wait(&mut self, limit: Duration) -> Waited {
        self.timer.set(limit);
        let mut drained = pin!(self.peer.drain.idle_over());
        poll_fn(|cx| {
            let waited = if let Poll::Ready(received) = self.buffer.poll_fill(&self.stream, cx) {
                return Poll::Ready(match received {
                    Ok(count) if count > 0 => Waited::Received,
                    _ => Waited::Over,
                });
            } else if drained.as_mut().poll(cx).is_ready() {
                Waited::Over
            } else {
                ready!(self.timer.poll_expired(cx));
                Waited::Long
            };
            // The reactor may not have heard of a request that is there already.
            Poll::Ready(match self.stream.is_quiet() {
                true => waited,
                false => Waited::Received,
            })
        })
        .await
    }

    async fn serve_request(&mut self) -> Next {
        let mut request = match self.read_request().await {
            Ok(Some(request)) => request,
            Ok(None) => return Next::Close,
            Err(error) => return self.refuse(error).await,
        };
        turn::pass().await;
        match forward(self, &mut request).await {
            Ok(next) => next,
            Err(error) => self.answer(error, &request).await,
        }
    }

    /// Reads the head of a request; `None` if the connection ends without one.
    async fn read_request(&mut self) -> Result<Option<Request>, ProxyError> {
        let mut limited = false;
        let mut new_lines = !self.buffer.is_empty();
        loop {
            self.skip_empty_lines();
            if new_lines && let Some(request) = self.admit()? {
                return Ok(Some(request));
            }
            let before = self.buffer.unread().len();
            if before >= LONGEST_REQUEST_HEAD {
                let in_first_line = !self.buffer.unread().contains(&b'\n');
                return Err(match in_first_line {
                    true => Refusal::TargetTooLong.into(),
                    false => Refusal::HeadTooLarge.into(),
                });
            }
            if before > 0 && !limited {
                limited = true;
                self.timer.set(HEAD_LIMIT);
            }
            let received = self.timer.limit(self.buffer.fill(&self.stream)).await;
            match received {
                Some(Ok(0) | Err(_)) => return Ok(None),
                Some(Ok(_)) => {
                    new_lines = before == 0 || self.buffer.unread()[before..].contains(&b'\n')
                }
                None if before == 0 => return Ok(None),
                None => return Err(ProxyError::RequestTimeout),
            }
        }
    }

    /// RFC 9112, section 2.2: empty lines before a request are ignored.
    fn skip_empty_lines(&mut self) {
        loop {
            let length = match self.buffer.unread() {
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] => 1,
                _ => return,
            };
            self.buffer.consume(length);
        }
    }

    fn admit(&mut self) -> Result<Option<Request>, Refusal> {
        let sender = RequestSender {
            address: &self.peer.text,
            secure: self.stream.is_secure(),
            trusted: self.peer.view.trusts(self.peer.address.ip()),
            forwarded: self.peer.view.sets_forwarded(),
        };
        Request::admit(&mut self.buffer, &self.peer.listener, sender)
    }

    /// What follows a response that has told the client so much.
    pub(crate) fn next(&self, told: Persistence, request: &Request) -> Next {
        let received = request.outgoing.is_received();
        match told {
            Persistence::KeepAlive if received => Next::Request,
            // It said itself that it would send nothing more, and it has not.
            Persistence::Close
                if received && !request.reply.keep_alive && self.buffer.is_empty() =>
            {
                Next::Close
            }
            _ => Next::Linger,
        }
    }

    /// Awaits `future`; `None` if the client resets the connection meanwhile.
    pub(crate) async fn unless_reset<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut reset = pin!(self.stream.reset());
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            reset.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    /// Answers something that is no request. Where the next one would begin is unknown.
    async fn refuse(&mut self, error: ProxyError) -> Next {
        tracing::debug!(client_addr = %self.peer.address, %error, "request refused");
        let mut out = Vec::new();
        write_error(&error, false, Version::Http11, Persistence::Close, &mut out);
        self.send(&out, Next::Linger).await
    }

    /// Answers a request that no instance has answered.
    async fn answer(&mut self, error: ProxyError, request: &Request) -> Next {
        let service = request.service_name();
        let id = request.instance.map(|id| id.0);
        if error.is_failure() {
            tracing::warn!(service, id, client_addr = %self.peer.address, %error, "request failed");
        } else {
            tracing::debug!(service, client_addr = %self.peer.address, %error, "request refused");
        }
        let reply = &request.reply;
        let keep_alive = reply.keep_alive && request.outgoing.is_received() && !self.peer.closing();
        let told = match keep_alive {
            true => Persistence::KeepAlive,
            false => Persistence::Close,
        };
        let mut out = Vec::new();
        write_error(&error, reply.to_head, reply.version, told, &mut out);
        let next = self.next(told, request);
        self.send(&out, next).await
    }

    pub(crate) fn log_cut(&self, request: &Request) {
        let service = request.service_name();
        let id = request.instance.map(|id| id.0);
        tracing::warn!(service, id, client_addr = %self.peer.address, "response cut off");
    }

    async fn send(&mut self, bytes: &[u8], next: Next) -> Next {
        self.timer.set(STALL_LIMIT);
        let sendable = Sendable::plain(bytes);
        match self.timer.limit(sendable.send(&self.stream, || {})).await {
            Some(Ok(())) => next,
            Some(Err(_)) | None => Next::Close,
        }
    }

    /// Closes our side, and lets the client read what it has been sent.
    async fn linger(&mut self) {
        if let Stream::Transport(transport) = &self.stream {
            linger(transport, &mut self.buffer, &mut self.timer).await;
        }
    }
}

#[cfg(test)]
mod tests;
