//! The upload: one try to send a request to an instance.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use super::flow::{ExchangeEnd, Flow, UploadState};
use super::outgoing::Outgoing;
use crate::proxy::http::http1::{FramingError, Refusal};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::send::Sendable;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::turn::BodyShare;

/// Sends what is kept of the request, and then the rest as it comes. The upload also ends when the
/// instance takes no more of the request.
pub(crate) async fn upload(
    flow: &Flow,
    client: &Stream,
    buffer: &mut Buffer,
    outgoing: &mut Outgoing,
    instance: &Stream,
) -> Result<(), ExchangeEnd> {
    let moved = || {
        flow.sent.set(true);
        flow.note_moved();
    };
    if !outgoing.awaits_permission {
        outgoing.gather(buffer).map_err(|error| flow.fail(error))?;
    }
    if let Err(error) = Sendable::plain(outgoing.kept()).send(instance, moved).await {
        if error.kind() == io::ErrorKind::InvalidInput {
            return Err(flow.fail(Refusal::Bad("it cannot be said in HTTP/2")));
        }
        if !flow.sent.get() {
            return Err(ExchangeEnd::Unanswered { sent: false });
        }
        flow.upload.set(UploadState::Refused);
        return Ok(());
    }
    if outgoing.awaits_permission {
        permission(flow).await;
        outgoing.awaits_permission = false;
    }
    let mut share = BodyShare::new();
    while !outgoing.is_whole() {
        if buffer.is_empty() {
            flow.upload.set(UploadState::Receiving);
            match flow.receive(client, buffer).await {
                Ok(0) => return Err(flow.fail(FramingError::Incomplete)),
                Ok(_) => {}
                Err(_) => return Err(ExchangeEnd::Abandoned),
            }
            flow.upload.set(UploadState::Sending);
        }
        let before = buffer.unread().len();
        let sent = outgoing.send_on(buffer, instance, moved).await;
        if sent.map_err(|error| flow.fail(error))?.is_err() {
            flow.upload.set(UploadState::Refused);
            return Ok(());
        }
        if !outgoing.can_be_repeated() {
            flow.has_another_try.set(false);
        }
        share.used(before - buffer.unread().len()).await;
    }
    flow.upload.set(UploadState::Done);
    Ok(())
}

/// Resolves when the client may send the body. The exchange polls this again each time that may
/// have changed.
async fn permission(flow: &Flow) {
    poll_fn(|_| match flow.awaits_permission.get() {
        true => Poll::Pending,
        false => Poll::Ready(()),
    })
    .await;
}
