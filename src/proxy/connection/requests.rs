//! HTTP/1 with clients: serves the requests of one connection, one after the other.
//!
//! # Theory of operation
//! A connection is idle until bytes come. Then its requests are served one after the other, and the
//! responses are sent in the same order. The future that serves a request is on the heap, so that
//! an idle connection needs little memory. A connection that stays idle returns from its task and
//! is parked, which needs even less.
//!
//! How a connection ends:
//! * While it is idle: when the client closes it, after `CLIENT_IDLE_LIMIT`, or when the worker
//!   drains and the time of an idle connection is over. Before that, a connection of a draining
//!   worker, or of a listener that was removed, waits for one more request, and the response tells
//!   the client that it is the last. A close at any moment could hit a request on its way.
//! * After a response that announces the end, when the client may have sent more than was read: our
//!   side is closed first, and the rest is read for a while ([`linger`]).
//! * In the middle of a response that cannot be completed: at once, so that the client cannot take
//!   the part for the whole.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Duration;

use crate::proxy::exchange::client::{Client, Next, REST_OF_IDLE_LIMIT, STALL_LIMIT};
use crate::proxy::exchange::error::{ProxyError, write_error};
use crate::proxy::exchange::forward::forward;
use crate::proxy::exchange::request::Request;
use crate::proxy::http::headers::Persistence;
use crate::proxy::http::http1::{LONGEST_REQUEST_HEAD, Refusal, Version, too_long};
use crate::proxy::net::held::HeldHead;
use crate::proxy::net::linger::{linger, read_rest};
use crate::proxy::net::send::Sendable;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::turn;

/// How long the head of a request may take, from its first byte on.
const HEAD_LIMIT: Duration = Duration::from_secs(15);

/// How many bytes of empty lines may stand before a request.
const MOST_EMPTY_LINES: u16 = 1024;

/// How waiting for the next bytes of an idle connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// Bytes have come.
    Received,
    /// No byte came for a while, and the connection can be parked.
    Long,
    /// The connection must be closed: the client has closed it, the time limit of idle connections
    /// has passed, or there are too many connections.
    Over,
}

/// Serves the requests of a connection with HTTP/1, to its end or until it is idle and can be
/// parked; then the client is returned.
pub(crate) async fn serve_requests(mut client: Box<Client>) -> Option<Box<Client>> {
    client.peer.speaks_http1.set(true);
    let mut skipped = 0;
    loop {
        skipped = skip_empty_lines(&mut client).saturating_add(skipped);
        if skipped > MOST_EMPTY_LINES {
            return None;
        }
        if client.buffer.is_empty() {
            match wait(&mut client).await {
                Waited::Received => continue,
                Waited::Long => return Some(client),
                Waited::Over => return None,
            }
        }
        skipped = 0;
        match Box::pin(serve_request(&mut client, None)).await {
            Next::Request => {}
            Next::Close => return None,
            Next::Linger => {
                Box::pin(let_read(&mut client)).await;
                return None;
            }
            Next::Reset => {
                // If the reset fails, the connection has ended already.
                let _ = client.stream.reset_on_close();
                return None;
            }
        }
    }
}

/// Serves one request, and returns what happens to the connection next. A stream of HTTP/2 has only
/// one request, so it ends in any case; `held` counts its head already.
pub(super) async fn serve_request(client: &mut Client, held: Option<HeldHead>) -> Next {
    let mut request = match read_request(client).await {
        Ok(Some(request)) => request,
        Ok(None) => return Next::Close,
        Err(error) => return refuse(client, error).await,
    };
    request.outgoing.count(&client.peer.held, held);
    if request.binds_connection && client.stream.requires_http1() {
        return Next::Reset;
    }
    turn::pass().await;
    match forward(client, &mut request).await {
        Ok(next) => next,
        Err(error) => answer(client, error, &request).await,
    }
}

/// Waits for the next bytes of an idle connection.
pub(super) async fn wait(client: &mut Client) -> Waited {
    match wait_for(client, client.peer.view.idle_after()).await {
        Waited::Long if !client.can_be_parked() => {
            Box::pin(wait_on(client, REST_OF_IDLE_LIMIT)).await
        }
        waited => waited,
    }
}

/// Waits for the first bytes of a connection, up to a time limit. Returns false if the connection
/// must be closed.
pub(super) async fn wait_for_first(client: &mut Client, limit: Duration) -> bool {
    let idle_after = client.peer.view.idle_after();
    let waited = match wait_for(client, idle_after).await {
        Waited::Long => wait_on(client, limit - idle_after).await,
        waited => waited,
    };
    waited == Waited::Received
}

/// Waits for the next bytes of a connection that has been idle for a while and keeps its task, up
/// to a time limit.
async fn wait_on(client: &mut Client, limit: Duration) -> Waited {
    let idle_tasks = client.peer.view.idle_tasks();
    let ends = idle_tasks.register(client.peer.listener.id());
    let waited = tokio::select! {
        waited = wait_for(client, limit) => waited,
        Ok(()) = ends => match client.stream.is_quiet() {
            true => Waited::Over,
            // A request may have come that the reactor has not reported yet.
            false => Waited::Received,
        },
    };
    match waited {
        Waited::Long => Waited::Over,
        waited => waited,
    }
}

/// Waits for the next bytes of an idle connection, up to a time limit. A draining worker has a time
/// limit of its own.
async fn wait_for(client: &mut Client, limit: Duration) -> Waited {
    let drain = &client.peer.drain;
    let mut changes = pin!(drain.changes());
    client.timer.set(drain.idle_limit().unwrap_or(limit));
    let (stream, buffer, timer) = (&client.stream, &mut client.buffer, &mut client.timer);
    poll_fn(move |cx| {
        if let Poll::Ready(received) = buffer.poll_fill(stream, cx) {
            return Poll::Ready(match received {
                Ok(count) if count > 0 => Waited::Received,
                _ => Waited::Over,
            });
        }
        while changes.as_mut().poll(cx).is_ready() {
            changes.set(drain.changes());
            timer.set(drain.idle_limit().unwrap_or_default());
        }
        ready!(timer.poll_expired(cx));
        Poll::Ready(match stream.is_quiet() {
            // A request may have come that the reactor has not reported yet.
            false => Waited::Received,
            true if drain.has_begun() => Waited::Over,
            true => Waited::Long,
        })
    })
    .await
}

/// Reads the head of a request; `None` if the connection ends without one.
async fn read_request(client: &mut Client) -> Result<Option<Request>, ProxyError> {
    let mut limited = false;
    // Counts a head that comes in pieces.
    let mut _held = None;
    let mut new_lines = !client.buffer.is_empty();
    loop {
        skip_empty_lines(client);
        if new_lines && let Some(request) = admit(client)? {
            return Ok(Some(request));
        }
        let before = client.buffer.unread().len();
        if before >= LONGEST_REQUEST_HEAD {
            return Err(too_long(client.buffer.unread()).into());
        }
        if before > 0 && !limited {
            limited = true;
            client.timer.set(HEAD_LIMIT);
        }
        if before > 0 {
            _held = Some(client.peer.held.hold(client.buffer.size()));
        }
        let received = client.buffer.fill(&client.stream);
        match client.timer.limit(received).await {
            Some(Ok(0) | Err(_)) => return Ok(None),
            Some(Ok(_)) => {
                new_lines = before == 0 || client.buffer.unread()[before..].contains(&b'\n')
            }
            None if before == 0 => return Ok(None),
            None => return Err(ProxyError::RequestTimeout),
        }
    }
}

/// Skips empty lines before a request, as RFC 9112, section 2.2, asks for. Returns how many bytes
/// they have.
fn skip_empty_lines(client: &mut Client) -> u16 {
    let mut rest = client.buffer.unread();
    while let [b'\r', b'\n', after @ ..] | [b'\n', after @ ..] = rest {
        rest = after;
    }
    let skipped = client.buffer.unread().len() - rest.len();
    client.buffer.consume(skipped);
    skipped.try_into().unwrap_or(u16::MAX)
}

fn admit(client: &mut Client) -> Result<Option<Request>, Refusal> {
    let sender = client.peer.sender(client.stream.is_secure());
    let request = match Request::admit(&mut client.buffer, &client.peer.listener, sender) {
        Err(Refusal::Version) if lower_version(client.buffer.unread_mut()) => {
            Request::admit(&mut client.buffer, &client.peer.listener, sender)
        }
        admitted => admitted,
    }?;
    // A request with a body, or with a length, is none for a tunnel.
    let is_ordinary = |request: &Request| request.upgrade.is_none();
    if client.stream.websocket().is_some() && request.as_ref().is_some_and(is_ordinary) {
        return Err(Refusal::Bad("a WebSocket with a body"));
    }
    Ok(request)
}

/// Makes HTTP/1.1 of a later minor version of HTTP/1 in the first line of a head, because that is
/// the highest one that is spoken here (RFC 9110, section 2.5). Returns false if the version is
/// another one.
fn lower_version(head: &mut [u8]) -> bool {
    let line = head.split_mut(|&byte| byte == b'\n').next();
    match line.map(|line| line.trim_ascii_end().len()) {
        Some(end @ 8..) if &head[end - 8..end - 1] == b"HTTP/1." => {
            let is_later = matches!(head[end - 1], b'2'..=b'9');
            if is_later {
                head[end - 1] = b'1';
            }
            is_later
        }
        _ => false,
    }
}

/// Sends the response to bytes that are not a valid request. The connection then ends, because
/// nobody knows where the next request would begin.
pub(super) async fn refuse(client: &mut Client, error: ProxyError) -> Next {
    tracing::debug!(client_addr = %client.peer.address, %error, "request refused");
    let mut out = Vec::new();
    let version = Version::Http11;
    write_error(&error, None, false, version, Persistence::Close, &mut out);
    send(client, &out, Next::Linger).await
}

/// Sends the proxy's own response to a request for which no instance has responded.
async fn answer(client: &mut Client, error: ProxyError, request: &Request) -> Next {
    let service = request.service_name();
    let id = request.instance.map(|id| id.0);
    let client_addr = client.peer.address;
    let request_id = &request.id;
    if !error.is_failure() {
        tracing::debug!(service, %client_addr, %request_id, %error, "request refused");
    } else if request.may_log_failure() {
        tracing::warn!(service, id, %client_addr, %request_id, %error, "request failed");
    } else {
        tracing::debug!(service, id, %client_addr, %request_id, %error, "request failed");
    }
    let reply = &request.reply;
    let keep_alive = reply.keep_alive && request.outgoing.is_received() && !client.peer.closing();
    let told = match keep_alive {
        true => Persistence::KeepAlive,
        false => Persistence::Close,
    };
    let mut out = Vec::new();
    let id = Some(&request.id);
    write_error(&error, id, reply.to_head, reply.version, told, &mut out);
    let next = client.next(told, request);
    send(client, &out, next).await
}

/// Sends a whole response of the proxy. Returns `next`, unless the client does not take the
/// response.
async fn send(client: &mut Client, bytes: &[u8], next: Next) -> Next {
    client.timer.set(STALL_LIMIT);
    let sending = Sendable::plain(bytes);
    match client
        .timer
        .limit(sending.send(&client.stream, || {}))
        .await
    {
        Some(Ok(())) => next,
        Some(Err(_)) | None => Next::Close,
    }
}

/// Closes our side of the connection, and waits so that the client can read what was sent.
///
/// On a stream of HTTP/2, our side ends with the response. If the client is still sending its
/// request, dropping the stream resets it. The reset is sent after the response (RFC 9113, section
/// 8.1), but some clients that receive both at once, curl 7.88 among them, take the response for
/// lost. A client that has been given room for more than it could send at first has the response.
pub(super) async fn let_read(client: &mut Client) {
    let Client {
        stream,
        buffer,
        timer,
        ..
    } = client;
    match stream {
        Stream::Transport(transport) => linger(transport, buffer, timer).await,
        Stream::Http2(stream) => read_rest(&**stream, buffer, timer).await,
        Stream::H2c(_) => {}
    }
}
