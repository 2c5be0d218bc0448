//! A tunnel: after an instance has switched the protocol, bytes are passed on both ways unread.
//!
//! # Theory of operation
//! Each direction reads only when everything that it has read before was sent. So a fast sender is
//! slowed down to the speed of its receiver, and a silent tunnel holds no memory. Bytes that either
//! side has sent right after its head lie in the buffers of the two connections, and are passed on
//! first.
//!
//! If one side closes its sending half, the other side is told so; the other half stays open as
//! long as bytes move in it. A reset or another fault of one connection resets the other one, so
//! that no reader takes a part for the whole. Apart from that, a tunnel may be silent without
//! limit. The kernel finds a client that has vanished; an instance cannot vanish in that way, since
//! it is on this machine.
//!
//! An instance that is to be replaced is told so while its tunnels are open, so that it can end
//! them by the rules of their protocol. Tunnels that are still open when their time is over are
//! reset.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::client::{Client, Next, STALL_LIMIT};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::send::Sendable;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::turn::BodyShare;
use crate::proxy::view::endpoint::Claim;
use crate::proxy::view::upstream::Upstream;

/// Runs a tunnel: sends the head of the 101, and then passes on the bytes of both sides until both
/// have ended.
pub(crate) async fn tunnel(
    client: &mut Client,
    upstream: &mut Upstream,
    claim: &Claim,
    head: Vec<u8>,
) -> Next {
    let result = match client.stream.watch_peer() {
        Ok(()) => tokio::select! {
            result = connect(client, upstream, &head) => Some(result),
            () = claim.cut() => None,
        },
        Err(error) => Some(Err(error)),
    };
    match result {
        Some(Ok(())) => Next::Close,
        Some(Err(_)) | None => {
            // If the reset fails, the connection has ended already.
            let _ = upstream.stream.reset_on_close();
            Next::Reset
        }
    }
}

async fn connect(client: &mut Client, upstream: &mut Upstream, head: &[u8]) -> io::Result<()> {
    let Client {
        stream,
        buffer,
        timer,
        ..
    } = client;
    let moved = Cell::new(false);
    let note = || moved.set(true);
    let mut up = pin!(pass(stream, buffer, &upstream.stream, note));
    let mut down = pin!(async {
        Sendable::plain(head).send(stream, note).await?;
        pass(&upstream.stream, &mut upstream.buffer, stream, note).await
    });
    let (mut up_ended, mut down_ended) = (false, false);
    poll_fn(|cx| {
        let half = up_ended || down_ended;
        if !up_ended {
            up_ended = poll_end(up.as_mut(), cx)?;
        }
        if !down_ended {
            down_ended = poll_end(down.as_mut(), cx)?;
        }
        if up_ended && down_ended {
            return Poll::Ready(Ok(()));
        }
        if !up_ended && !down_ended {
            return Poll::Pending;
        }
        if moved.take() || !half {
            timer.set(STALL_LIMIT);
        }
        timer
            .poll_expired(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

/// Polls one direction of the tunnel. Returns true if it has ended.
fn poll_end(
    direction: Pin<&mut impl Future<Output = io::Result<()>>>,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    match direction.poll(cx) {
        Poll::Ready(result) => result.map(|()| true),
        Poll::Pending => Ok(false),
    }
}

/// Passes on all bytes from one side to the other, and then the end of the stream.
async fn pass(from: &Stream, buffer: &mut Buffer, to: &Stream, moved: impl Fn()) -> io::Result<()> {
    let mut share = BodyShare::new();
    loop {
        if buffer.is_empty() && poll_fn(|cx| to.poll_fill(buffer, from, cx)).await? == 0 {
            return to.finish();
        }
        Sendable::plain(buffer.unread()).send(to, &moved).await?;
        let count = buffer.unread().len();
        buffer.consume(count);
        share.used(count).await;
    }
}
