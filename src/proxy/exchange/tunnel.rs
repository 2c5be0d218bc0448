//! What follows when an instance changes the protocol: bytes go both ways, and mean nothing here.
//!
//! # Theory of operation
//! Each direction reads only when all that it has read before is sent, so each peer is as fast as
//! the other reads, and a tunnel that is silent holds no memory. What either side has sent too
//! early, right behind its head, lies in the buffers of the two connections and goes first.
//!
//! A side that has sent all it wants to send closes its half, and that is passed on; the other half
//! stays open for as long as something moves in it. A reset, or any other fault of one connection,
//! resets the other one: whoever reads must not take what it has got for all. Otherwise a tunnel
//! may be silent for as long as it likes. A client that is gone without a word is found by the
//! kernel; an instance cannot be, as it is on this machine.
//!
//! An instance that is to be replaced is told so while its tunnels are open, so that it can end
//! them in the words of their protocol. Tunnels that it has not ended when their time is over are
//! cut off, like a reset.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::client::{Client, Next, STALL_LIMIT};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::send::Sendable;
use crate::proxy::net::stream::Stream;
use crate::proxy::view::endpoint::Claim;
use crate::proxy::view::upstream::Upstream;

/// Runs a tunnel: sends the head of the response, and from then on whatever comes from either side,
/// until both have ended.
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
            // If that fails, the connection is gone already.
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

/// Returns true if a direction has ended.
fn poll_end(
    direction: Pin<&mut impl Future<Output = io::Result<()>>>,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    match direction.poll(cx) {
        Poll::Ready(result) => result.map(|()| true),
        Poll::Pending => Ok(false),
    }
}

/// Passes everything on from one side to the other, and its end, too.
async fn pass(from: &Stream, buffer: &mut Buffer, to: &Stream, moved: impl Fn()) -> io::Result<()> {
    loop {
        if buffer.is_empty() && buffer.fill(from).await? == 0 {
            return to.finish();
        }
        Sendable::plain(buffer.unread()).send(to, &moved).await?;
        let count = buffer.unread().len();
        buffer.consume(count);
    }
}
