//! Begins a new connection: who its client is, whether it uses TLS, and which protocol it speaks.
//!
//! # Theory of operation
//! What comes first on a connection depends on its listener: a header of the PROXY protocol, then a
//! TLS handshake. After that, the result of the handshake or the first bytes of the client show
//! whether the client speaks HTTP/2 or HTTP/1.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use super::http2;
use super::proxy_protocol::{HeaderReader, NoProxyHeader, Origin};
use super::requests::{Waited, let_read, refuse, serve_requests, wait, wait_for_first};
use crate::proxy::exchange::client::Client;
use crate::proxy::http::http1::Refusal;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::tls;
use crate::proxy::net::transport::Transport;

/// How long a trusted proxy may take for its PROXY header. A proxy sends it at once, unless a
/// segment is lost.
const PROXY_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may take for the first bytes of a TLS handshake, and for those that show
/// whether it speaks HTTP/2.
const FIRST_LIMIT: Duration = Duration::from_secs(10);

/// Serves a new connection, to its end or until it is idle and can be parked; then the client is
/// returned. The client is on the heap, because a task would otherwise hold it twice: as an
/// argument and as a variable.
pub(crate) async fn serve(mut client: Box<Client>) -> Option<Box<Client>> {
    if client.peer.listener.has_proxy_protocol() && !Box::pin(read_proxy_header(&mut client)).await
    {
        return None;
    }
    if let Some(config) = client.peer.listener.tls() {
        client = Box::pin(secure(client, config)).await?;
    }
    resume(client).await
}

/// Serves a connection on which HTTP begins or goes on: to its end or until it is idle and can be
/// parked; then the client is returned.
pub(crate) async fn resume(mut client: Box<Client>) -> Option<Box<Client>> {
    if client.peer.speaks_http1.get() {
        return serve_requests(client).await;
    }
    // The protocol is known by the first bytes, and those that have come may not be in the buffer
    // yet.
    while client.buffer.is_empty() {
        match wait(&mut client).await {
            Waited::Received => {}
            Waited::Long => return Some(client),
            Waited::Over => return None,
        }
    }
    if http2::may_begin(client.buffer.unread()) && !Box::pin(see_protocol(&mut client)).await {
        return None;
    }
    if http2::is_begun(&client) {
        Box::pin(http2::serve(*client)).await;
        return None;
    }
    serve_requests(client).await
}

/// Reads until the first bytes show whether the client speaks HTTP/2. Returns false if the
/// connection must be closed.
async fn see_protocol(client: &mut Client) -> bool {
    while http2::may_begin(client.buffer.unread()) {
        client.timer.set(FIRST_LIMIT);
        let received = client.buffer.fill(&client.stream);
        match client.timer.limit(received).await {
            Some(Ok(count)) if count > 0 => {}
            Some(_) => return false,
            // A request that begins so slowly gets the answer for that.
            None => return true,
        }
    }
    true
}

/// Reads from a trusted proxy who the client is. Returns false if the connection must be closed.
async fn read_proxy_header(client: &mut Client) -> bool {
    if !client.peer.view.trusts(client.peer.address.ip()) {
        tracing::debug!(client_addr = %client.peer.address, "connection refused, it is not from a trusted proxy");
        return false;
    }
    client.timer.set(PROXY_LIMIT);
    let mut reader = HeaderReader::default();
    let mut is_begun = false;
    let origin = loop {
        is_begun |= !client.buffer.is_empty();
        match reader.take(client.buffer.unread()) {
            Ok(taken) => {
                client.buffer.consume(taken.length);
                if let Some(origin) = taken.origin {
                    break origin;
                }
            }
            Err(error) => {
                client.peer.listener.log_refused(client.peer.address, error);
                return false;
            }
        }
        let received = client.buffer.fill(&client.stream);
        match client.timer.limit(received).await {
            Some(Ok(count)) if count > 0 => {}
            // A peer that only checks whether the port is open sends nothing, which is no fault to
            // log.
            _ if !is_begun => return false,
            _ => {
                let error = NoProxyHeader::CUT;
                client.peer.listener.log_refused(client.peer.address, error);
                return false;
            }
        }
    };
    match origin {
        Origin::Client(source) => match client.peer.in_place_of(source) {
            Ok(peer) => client.peer = Rc::new(peer),
            Err(error) => {
                client.peer.listener.log_refused(source, error);
                return false;
            }
        },
        Origin::Unknown => client.peer = Rc::new(client.peer.for_somebody()),
        Origin::Proxy => {}
    }
    true
}

/// Performs the TLS handshake. Returns `None` if the connection must be closed.
async fn secure(mut client: Box<Client>, config: Arc<ServerConfig>) -> Option<Box<Client>> {
    // `Received` may also mean that bytes have come that are not in the buffer yet.
    while client.buffer.is_empty() {
        if !wait_for_first(&mut client, FIRST_LIMIT).await {
            return None;
        }
    }
    // A handshake begins with the number 22, a request with a letter.
    if client.buffer.unread()[0].is_ascii_alphabetic() {
        refuse(&mut client, Refusal::NoTls.into()).await;
        let_read(&mut client).await;
        return None;
    }
    let socket = client.stream.into_socket()?;
    match tls::accept(socket, &mut client.buffer, config).await {
        Ok(secure) => Some(Box::new(Client {
            stream: Stream::Transport(Transport::Secure(Box::new(secure))),
            buffer: client.buffer,
            timer: client.timer,
            peer: client.peer,
            pinned: None,
        })),
        Err(error) => {
            tracing::debug!(client_addr = %client.peer.address, %error, "TLS handshake failed");
            None
        }
    }
}
