//! The download: passes a response, and the interim responses before it, on to the client.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::error::ProxyError;
use super::flow::{ExchangeEnd, Flow, UploadState};
use super::reply::{DeliveredResponse, Reply};
use crate::proxy::http::headers::{
    Persistence, delivery, write_interim, write_response, write_switch,
};
use crate::proxy::http::http1::{
    Decoder, Encoding, Framing, LONGEST_RESPONSE_HEAD, Malformed, ResponseHead, Spans, Version,
    slots,
};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::h2c_stream::is_refusal;
use crate::proxy::net::send::Sendable;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::turn::{self, BodyShare};

/// About how many bytes the head of a response gains when it is passed on.
const ADDED: usize = 64;

/// How many interim responses an instance may send to one request.
const MOST_INTERIMS: u32 = 32;

/// How long an instance may leave the `Expect: 100-continue` of a client unanswered.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);

/// The kind of a response whose head was read and written for the client.
enum Head {
    Interim,
    /// The response after which HTTP ends on this connection.
    Switch,
    Final {
        response: DeliveredResponse,
        framing: Framing,
    },
}

/// Why the head of a response is not passed on.
enum Untranslated {
    /// It does not answer this request.
    Stray,
    Malformed(Malformed),
}

impl From<Malformed> for Untranslated {
    fn from(malformed: Malformed) -> Untranslated {
        Untranslated::Malformed(malformed)
    }
}

/// Passes the response on, interim responses first. `closing` returns true if the connection to the
/// client will end with this response.
pub(crate) async fn download(
    flow: &Flow,
    instance: &Stream,
    buffer: &mut Buffer,
    client: &Stream,
    reply: &Reply,
    closing: impl Fn() -> bool,
) -> Result<DeliveredResponse, ExchangeEnd> {
    let mut out = Vec::new();
    let mut interims = 0;
    let (mut response, framing) = loop {
        match read_head(flow, instance, buffer, client, reply, &closing, &mut out).await? {
            Head::Final { response, framing } => break (response, framing),
            Head::Switch => return Err(ExchangeEnd::Switched { head: out }),
            Head::Interim if interims == MOST_INTERIMS => {
                return Err(flow.fail(Malformed("too many interim responses")));
            }
            Head::Interim => interims += 1,
        }
        send_interim(flow, client, &mut out).await?;
    };
    // Events may be far apart, so the kernel has to notice a vanished client.
    if flow.events.get() && client.watch_peer().is_err() {
        return Err(ExchangeEnd::Abandoned);
    }
    let encoding = match delivery(framing, reply.version) {
        Framing::Chunked => Encoding::Chunked,
        Framing::None | Framing::Length(_) | Framing::UntilClose => Encoding::Plain,
    };
    turn::pass().await;
    send_body(
        flow,
        instance,
        buffer,
        client,
        Decoder::of_response(framing),
        encoding,
        &mut out,
    )
    .await?;
    response.is_clean = buffer.is_empty();
    response.has_no_body = framing == Framing::None;
    Ok(response)
}

/// Reads the head of a response, and writes to `out` the head that the client gets.
async fn read_head(
    flow: &Flow,
    instance: &Stream,
    buffer: &mut Buffer,
    client: &Stream,
    reply: &Reply,
    closing: &impl Fn() -> bool,
    out: &mut Vec<u8>,
) -> Result<Head, ExchangeEnd> {
    let mut new_lines = !buffer.is_empty();
    loop {
        if new_lines {
            match translate(flow, buffer, client, reply, closing, out) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) => {}
                Err(Untranslated::Stray) => return Err(ExchangeEnd::Stray),
                Err(Untranslated::Malformed(_)) if flow.has_another_try.get() => {
                    return Err(ExchangeEnd::Stray);
                }
                Err(Untranslated::Malformed(malformed)) => return Err(flow.fail(malformed)),
            }
        }
        let before = buffer.unread().len();
        if before >= LONGEST_RESPONSE_HEAD {
            return Err(flow.fail(Malformed("head too large")));
        }
        match receive_or_permit(flow, instance, buffer, client).await? {
            Err(error) if is_refusal(&error) => return Err(ExchangeEnd::Refused),
            Ok(0) | Err(_) if !flow.heard.get() => {
                return Err(ExchangeEnd::Unanswered { sent: true });
            }
            Ok(0) | Err(_) => return Err(flow.fail(ProxyError::Incomplete)),
            Ok(_) => {
                flow.heard.set(true);
                // A head seldom comes in pieces. A piece without a line end cannot complete the
                // head, so the head is not parsed again for it.
                new_lines = before == 0 || buffer.unread()[before..].contains(&b'\n');
            }
        }
    }
}

/// Receives bytes from the instance. If the instance stays silent for too long, the proxy tells the
/// client to send its body.
async fn receive_or_permit(
    flow: &Flow,
    instance: &Stream,
    buffer: &mut Buffer,
    client: &Stream,
) -> Result<io::Result<usize>, ExchangeEnd> {
    if flow.awaits_permission.get() {
        if let Ok(received) =
            timeout(SILENCE_LIMIT, flow.receive_for(client, instance, buffer)).await
        {
            return Ok(received);
        }
        send_interim(flow, client, &mut b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()).await?;
        flow.awaits_permission.set(false);
        flow.permitted.set(true);
    }
    Ok(flow.receive_for(client, instance, buffer).await)
}

/// Sends the interim responses in `out`. If that fails in the middle, no other response can follow.
async fn send_interim(flow: &Flow, client: &Stream, out: &mut Vec<u8>) -> Result<(), ExchangeEnd> {
    if out.is_empty() {
        return Ok(());
    }
    flow.committed.set(true);
    let sent = Sendable::plain(out)
        .send(client, || flow.note_moved())
        .await;
    sent.map_err(|_| ExchangeEnd::Abandoned)?;
    flow.committed.set(false);
    out.clear();
    Ok(())
}

/// Takes the head of a response out of the buffer, if the head is complete.
fn translate(
    flow: &Flow,
    buffer: &mut Buffer,
    client: &Stream,
    reply: &Reply,
    closing: &impl Fn() -> bool,
    out: &mut Vec<u8>,
) -> Result<Option<Head>, Untranslated> {
    let mut slots = slots();
    let Some(head) = ResponseHead::parse(buffer.unread(), reply.to_head, &mut slots)? else {
        return Ok(None);
    };
    if head.size > LONGEST_RESPONSE_HEAD {
        return Err(Malformed("head too large").into());
    }
    if flow.has_another_try.get() && is_about_silence(flow, &head) {
        return Err(Untranslated::Stray);
    }
    if let Some(key) = client.websocket() {
        key.check(&head)?;
    }
    let size = head.size;
    let body = match head.framing {
        Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
        Framing::None | Framing::Chunked | Framing::UntilClose => 0,
    };
    out.reserve(size + ADDED + body.min(buffer.unread().len()));
    let translated = match head.is_interim() {
        true => translate_interim(flow, &head, reply, out)?,
        false => translate_final(flow, &head, reply, closing, out),
    };
    buffer.consume(size);
    // It was a response, so nothing of another one is before it.
    flow.has_another_try.set(false);
    Ok(Some(translated))
}

/// Returns true if a response tells that no request has come in time, although all of this one was
/// sent. Then the instance was about to close an idle connection (RFC 9110, section 15.5.9).
fn is_about_silence(flow: &Flow, head: &ResponseHead<'_>) -> bool {
    head.status == 408 && !head.keep_alive && flow.upload.get() == UploadState::Done
}

fn translate_interim(
    flow: &Flow,
    head: &ResponseHead<'_>,
    reply: &Reply,
    out: &mut Vec<u8>,
) -> Result<Head, Malformed> {
    if head.status == 101 {
        let asked = flow
            .upgrade
            .as_deref()
            .ok_or(Malformed("an upgrade that nobody asked for"))?;
        let protocol = head.upgrade().ok_or(Malformed("an upgrade to nothing"))?;
        // Otherwise the end of the request and the beginning of the tunnel could not be told apart.
        if flow.upload.get() != UploadState::Done {
            return Err(Malformed("an upgrade before the end of the request"));
        }
        if !protocol.eq_ignore_ascii_case(asked) {
            return Err(Malformed("an upgrade to another protocol"));
        }
        write_switch(head, protocol, out);
        return Ok(Head::Switch);
    }
    let told_already = head.status == 100 && flow.permitted.get();
    if reply.version == Version::Http11 && !told_already {
        write_interim(head, out);
    }
    if head.status == 100 {
        flow.awaits_permission.set(false);
    }
    Ok(Head::Interim)
}

fn translate_final(
    flow: &Flow,
    head: &ResponseHead<'_>,
    reply: &Reply,
    closing: &impl Fn() -> bool,
    out: &mut Vec<u8>,
) -> Head {
    let framing = delivery(head.framing, reply.version);
    let upload_goes_on = match flow.upload.get() {
        UploadState::Done => true,
        UploadState::Sending | UploadState::Receiving => {
            head.keep_alive && !flow.awaits_permission.get()
        }
        UploadState::Refused => false,
    };
    let keep_alive =
        reply.keep_alive && upload_goes_on && framing != Framing::UntilClose && !closing();
    let persistence = match keep_alive {
        true => Persistence::KeepAlive,
        false => Persistence::Close,
    };
    let to_trusted = reply.to_trusted;
    write_response(head, to_trusted, reply.version, framing, persistence, out);
    if let Some(policy) = &reply.policy {
        policy.apply(head, out);
    }
    flow.until_close.set(framing == Framing::UntilClose);
    flow.events.set(is_event_stream(head));
    Head::Final {
        response: DeliveredResponse {
            persistence,
            instance_keeps_alive: head.keep_alive,
            binds_connection: head.binds_connection,
            keep_alive_timeout: head.keep_alive_timeout,
            is_clean: false,
            has_no_body: false,
        },
        framing: head.framing,
    }
}

/// Returns true for a stream of server-sent events, where a long silence is normal.
fn is_event_stream(head: &ResponseHead<'_>) -> bool {
    let is_endless = matches!(head.framing, Framing::Chunked | Framing::UntilClose);
    is_endless
        && head
            .get("content-type")
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with(b"text/event-stream"))
}

/// Sends the head, which is in `out`, and then the body as it comes.
async fn send_body(
    flow: &Flow,
    instance: &Stream,
    buffer: &mut Buffer,
    client: &Stream,
    mut body: Decoder,
    encoding: Encoding,
    out: &mut Vec<u8>,
) -> Result<(), ExchangeEnd> {
    let mut share = BodyShare::new();
    loop {
        let mut data = Spans::default();
        let mut consumed = match body.is_end() {
            true => 0,
            false => body
                .decode(buffer.unread(), &mut data)
                .map_err(|_| flow.fail(Malformed("body")))?,
        };
        let piece = data.len();
        let trailers = body.is_end().then(|| body.trailers());
        let sendable = Sendable::framed(out, encoding, buffer.unread(), data, trailers);
        if !sendable.is_empty() {
            flow.committed.set(true);
            flow.delivering.set(true);
            let sent = match sendable.is_gathered() {
                true => {
                    // The client may take its time, and meanwhile two copies would be one too many.
                    buffer.consume(std::mem::take(&mut consumed));
                    let sendable = Sendable::plain(out);
                    sendable.send(client, || flow.note_moved()).await
                }
                false => sendable.send(client, || flow.note_moved()).await,
            };
            flow.note_delivered();
            flow.delivering.set(false);
            sent.map_err(|_| ExchangeEnd::Abandoned)?;
        }
        out.clear();
        buffer.consume(consumed);
        if body.is_end() {
            return Ok(());
        }
        share.used(piece).await;
        if buffer.is_empty() {
            match flow.receive_for(client, instance, buffer).await {
                Ok(0) => body.close().map_err(|_| flow.cut())?,
                Ok(_) => {}
                Err(_) => return Err(flow.cut()),
            }
        }
    }
}
