//! One request and its response over one connection to an instance.
//!
//! # Theory of operation
//! Two directions run at the same time within one task: [`upload`] passes the request to the
//! instance, [`download`] passes the response to the client. They share only a few flags
//! ([`Flow`]). Each direction reads only as much as it can pass on, so a fast sender is slowed down
//! to the speed of its receiver.
//!
//! * Once a byte of the final response was sent to the client, the exchange is committed. Before
//!   that, a failure can still become another try or an error response. After that, only a cut
//!   connection can show the failure.
//! * A response may end before the request does. The instance then gets no more of the request: it
//!   may not have waited for the rest, and could take it for another request. Its connection is
//!   closed, and the rest is read and dropped.
//! * An instance that takes no more of the request may still respond: then only the upload ends.
//! * If a client asks whether it should send its body at all (`Expect: 100-continue`), the answer
//!   of the instance is passed on. If the instance stays silent, the proxy tells the client to send
//!   the body.
//! * A client that has closed its sending side still gets its response. A client that has reset the
//!   connection ends the exchange.
//! * What comes first on a connection that has carried another request may belong to that one: a
//!   body that should not have been sent, or the answer to a silence. Such bytes must not fail this
//!   request, so the exchange ends without an answer, if the request may be sent again.
//! * An instance that switches the protocol, as the client has asked, ends the exchange; a tunnel
//!   follows.
//! * A time limit ends an exchange in which neither direction moves anything: the service's
//!   `response_timeout` while the exchange waits for the instance, and `STALL_LIMIT` while it waits
//!   for the client. Between two events of an event stream, a day may pass.
//! * A client that has closed its sending side may be gone. While the instance or the worker
//!   drains, it is not waited for much longer if it has got nothing yet. Only exchanges that have
//!   lasted for [`FIRST_LOOK`] watch for this, since most end sooner.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use super::client::{Client, Peer};
use super::download::download;
use super::flow::{ExchangeEnd, Flow, UploadState};
use super::request::Request;
use super::upload::upload;
use crate::proxy::net::stream::Stream;
use crate::proxy::view::endpoint::Claim;
use crate::proxy::view::upstream::Upstream;

/// How long an exchange may last before it watches whether its client is gone while the instance
/// drains.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// The time limits of an exchange that a service's file sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExchangeLimits {
    /// How long the instance may stay silent.
    pub(crate) response: Duration,
    /// How long a client that sends nothing more is waited for while the instance drains.
    pub(crate) gone: Duration,
}

/// Passes the request to the instance of `claim` and the response to the client at the same time,
/// over one connection to the instance. `has_another_try` is true if the connection has carried
/// another request, and this one may be sent again.
pub(crate) async fn exchange(
    client: &mut Client,
    request: &mut Request,
    upstream: &mut Upstream,
    claim: &Claim,
    limits: ExchangeLimits,
    has_another_try: bool,
) -> ExchangeEnd {
    let flow = Flow::new(
        request.outgoing.awaits_permission,
        has_another_try,
        request.upgrade.clone(),
        client.peer.held.clone(),
    );
    let Request {
        reply, outgoing, ..
    } = request;
    let Upstream { stream, buffer, .. } = upstream;
    let Client { peer, timer, .. } = client;
    let client_stream = &client.stream;
    let closing = || peer.closing();
    let mut reset = pin!(client.stream.reset());
    let mut up = pin!(upload(
        &flow,
        &client.stream,
        &mut client.buffer,
        outgoing,
        stream
    ));
    let mut down = pin!(download(
        &flow,
        stream,
        buffer,
        &client.stream,
        reply,
        closing
    ));
    let unfinished = Unfinished {
        flow: &flow,
        client: &client.stream,
    };
    let mut uploading = true;
    // What is left of the time limit after the first look, until that was taken.
    let mut rest = None;
    let mut gone: Option<Pin<Box<dyn Future<Output = ()> + '_>>> = None;
    let end = poll_fn(|cx| {
        loop {
            let waits = flow.awaits_permission.get();
            if uploading && let Poll::Ready(result) = up.as_mut().poll(cx) {
                uploading = false;
                if let Err(end) = result {
                    return Poll::Ready(end);
                }
            }
            if let Poll::Ready(result) = down.as_mut().poll(cx) {
                match result {
                    Ok(response) => {
                        let is_whole = flow.upload.get() == UploadState::Done;
                        let reusable =
                            is_whole && response.instance_keeps_alive && response.is_clean;
                        return Poll::Ready(ExchangeEnd::Answered { reusable, response });
                    }
                    Err(end) => return Poll::Ready(end),
                }
            }
            if waits == flow.awaits_permission.get() {
                break;
            }
        }
        if flow.moved.take() {
            let limit = flow.limit(limits.response);
            let looks = gone.is_none() && !flow.committed.get() && limit > FIRST_LOOK;
            rest = looks.then(|| limit - FIRST_LOOK);
            timer.set(rest.map_or(limit, |_| FIRST_LOOK));
        }
        while timer.poll_expired(cx).is_ready() {
            let Some(rest) = rest.take() else {
                return Poll::Ready(flow.time_out());
            };
            timer.set(rest);
            gone = Some(Box::pin(is_gone(client_stream, peer, claim, limits.gone)));
        }
        if let Some(gone) = &mut gone
            && !flow.committed.get()
            && gone.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(ExchangeEnd::ClientGone);
        }
        reset.as_mut().poll(cx).map(|()| ExchangeEnd::Abandoned)
    })
    .await;
    unfinished.finish();
    end
}

/// Resolves when a client has sent nothing more for a while, although the instance or the worker
/// drains.
async fn is_gone(client: &Stream, peer: &Peer, claim: &Claim, limit: Duration) {
    tokio::select! {
        () = claim.drains() => {}
        () = peer.drain.begins() => {}
    }
    client.sending_ends().await;
    tokio::time::sleep(limit).await;
}

/// Sees to it that a connection whose task is ended in the middle of a response is reset, if the
/// client could otherwise take the part for the whole.
struct Unfinished<'a> {
    flow: &'a Flow,
    client: &'a Stream,
}

impl Unfinished<'_> {
    /// Notes that the exchange has ended, so whoever has the result takes care of the connection.
    fn finish(self) {
        self.flow.until_close.set(false);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.flow.until_close.get() {
            // If the reset fails, the connection has ended already.
            let _ = self.client.reset_on_close();
        }
    }
}
