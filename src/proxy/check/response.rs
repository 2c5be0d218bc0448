//! The properties of the responses that an instance sends to one request, and of what the client
//! gets.

use super::pieces::{PassedBody, PieceReceiver, Pieces, assert_passed_on, is_hop_by_hop, parts};
use super::reader::{Context, ENDED_EARLY, Manner, Message};
use crate::proxy::http::headers::{Persistence, delivery, write_interim, write_response};
use crate::proxy::http::http1::{
    Encoding, Framing, LONGEST_RESPONSE_HEAD, ResponseHead, Version, slots,
};

/// What the proxy knows about the client and its request.
#[derive(Debug, Clone, Copy)]
struct Client {
    to_head: bool,
    version: Version,
    keep_alive: bool,
}

/// A response that was passed on completely, or until an error.
#[derive(Debug)]
struct Passed {
    status: u16,
    reason: String,
    /// The framing in which the client gets the body.
    framing: Framing,
    /// The head of the final response.
    head: Vec<u8>,
    /// The body in the framing in which the client gets it.
    wire: Vec<u8>,
    body: PassedBody,
    /// How many bytes of the instance were taken for the response.
    length: usize,
    instance_keeps_alive: bool,
}

/// Panics if a property is violated.
pub fn check(input: &[u8]) {
    let Some((flags, sent, pieces)) = parts(input) else {
        return;
    };
    let client = Client {
        to_head: flags & 1 != 0,
        version: match flags & 2 {
            0 => Version::Http11,
            _ => Version::Http10,
        },
        keep_alive: flags & 4 == 0,
    };
    let (mut interims, mut cut_interims) = (Vec::new(), Vec::new());
    let whole = pass(sent, Pieces::WHOLE, client, &mut interims);
    let cut = pass(sent, pieces, client, &mut cut_interims);
    assert_eq!(interims, cut_interims);
    check_interims(&interims);
    let (whole, cut) = match (whole, cut) {
        (Some(whole), Some(cut)) => (whole, cut),
        (None, None) => return,
        (whole, cut) => panic!("at once {whole:?}, in pieces {cut:?}"),
    };
    assert_eq!(undated(&whole.head), undated(&cut.head));
    assert_eq!(whole.body.end, cut.body.end);
    if whole.body.end.is_ok() {
        // What came in the same piece as an error was not passed on, so it may differ.
        assert_eq!((&whole.body, whole.length), (&cut.body, cut.length));
    }
    check_passed(sent, &whole, client);
    check_passed(sent, &cut, client);
}

/// Takes one response, and writes it for the client. `None` if there is no valid response.
fn pass(sent: &[u8], pieces: Pieces, client: Client, interims: &mut Vec<u8>) -> Option<Passed> {
    let mut receiver = PieceReceiver::new(sent, pieces);
    loop {
        let mut slots = slots();
        let head = match ResponseHead::parse(receiver.unread(), client.to_head, &mut slots) {
            Ok(Some(head)) if head.size <= LONGEST_RESPONSE_HEAD && head.status != 101 => head,
            Ok(None) if receiver.receive() => continue,
            _ => return None,
        };
        receiver.start += head.size;
        if head.is_interim() {
            let before = interims.len();
            write_interim(&head, interims);
            assert!(interims.len() - before <= head.size + MOST_ADDED);
            continue;
        }
        let framing = delivery(head.framing, client.version);
        let persistence = match client.keep_alive && framing != Framing::UntilClose {
            true => Persistence::KeepAlive,
            false => Persistence::Close,
        };
        let mut bytes = Vec::new();
        write_response(
            &head,
            true,
            client.version,
            framing,
            persistence,
            &mut bytes,
        );
        assert!(bytes.len() <= head.size + MOST_ADDED);
        let encoding = match framing {
            Framing::Chunked => Encoding::Chunked,
            Framing::None | Framing::Length(_) | Framing::UntilClose => Encoding::Plain,
        };
        let mut wire = Vec::new();
        let body = receiver.pass_body(head.framing, encoding, &mut wire);
        return Some(Passed {
            status: head.status,
            reason: head.reason.to_owned(),
            framing,
            head: bytes,
            wire,
            body,
            length: receiver.start,
            instance_keeps_alive: head.keep_alive,
        });
    }
}

/// Removes what the proxy may have written as the `Date`, since a second may begin between two
/// heads.
fn undated(head: &[u8]) -> Vec<&[u8]> {
    let lines = head.split(|&byte| byte == b'\n');
    lines
        .filter(|line| !(line.starts_with(b"Date: ") && line.ends_with(b" GMT\r")))
        .collect()
}

/// How many bytes a head may gain: fields that say how the body is framed and whether the
/// connection stays open, and white space, up to one byte for each field and line end.
const MOST_ADDED: usize = 512;

fn check_interims(mut wire: &[u8]) {
    while !wire.is_empty() {
        let interim =
            Message::read(wire, Context::Response { to_head: false }, Manner::Strict).unwrap();
        assert!(interim.is_interim() && interim.fields.len() <= 200);
        let is_framing = |name| interim.values(name).next().is_some();
        assert!(!is_framing("content-length") && !is_framing("transfer-encoding"));
        assert!(
            !interim
                .fields
                .iter()
                .any(|(name, _)| is_hop_by_hop(&name.to_ascii_lowercase()))
        );
        wire = interim.rest;
    }
}

fn check_passed(sent: &[u8], passed: &Passed, client: Client) {
    let context = Context::Response {
        to_head: client.to_head,
    };
    let wire = [&passed.head[..], &passed.wire].concat();
    let seen = match (
        Message::read(&wire, context, Manner::Strict),
        passed.body.end,
    ) {
        (Ok(seen), Ok(())) => seen,
        // The reset of the connection tells this client that the body is incomplete.
        (Ok(seen), Err(_)) if passed.framing == Framing::UntilClose => seen,
        (Err(ENDED_EARLY), Err(_)) => return,
        (seen, end) => panic!("{end:?}, but the client sees {seen:?}"),
    };
    assert!(seen.rest.is_empty(), "there is another response: {seen:?}");
    assert_eq!(
        seen.line,
        ["HTTP/1.1", &passed.status.to_string(), &passed.reason]
    );
    assert_eq!(seen.body, passed.body.data);
    let without_body = client.to_head || [204, 304].contains(&passed.status);
    assert!(!without_body || seen.body.is_empty());
    assert_passed_on(&seen);
    let count = |name| seen.values(name).count();
    assert!(count("date") > 0);
    assert!(passed.status != 204 || count("content-length") == 0);
    assert!(client.version == Version::Http11 || count("transfer-encoding") == 0);
    let connection: Vec<_> = seen.values("connection").collect();
    let until_close = !without_body && count("content-length") + count("transfer-encoding") == 0;
    assert!(!until_close || connection == [b"close"]);
    match (client.version, client.keep_alive && !until_close) {
        (_, false) => assert_eq!(connection, [b"close"]),
        (Version::Http11, true) => assert!(connection.is_empty()),
        (Version::Http10, true) => assert_eq!(connection, [b"keep-alive"]),
    }
    for (name, _) in &seen.fields {
        let name = name.to_ascii_lowercase();
        assert!(name == "connection" || !is_hop_by_hop(&name), "{name}");
    }
    if passed.body.end.is_err() {
        // The proxy has cut the response off where another reader might have gone on.
        return;
    }
    // Any other reader must understand what was sent in the same way.
    let mut rest = sent;
    let meant = loop {
        match Message::read(rest, context, Manner::Tolerant) {
            Ok(meant) if meant.is_interim() => rest = meant.rest,
            Ok(meant) => break meant,
            Err(invalid) => panic!("{invalid:?} was passed on"),
        }
    };
    assert_eq!(meant.line[1], seen.line[1]);
    // The reason phrase means nothing, so the proxy may drop one that is not ASCII.
    assert!(meant.line[2] == seen.line[2] || seen.line[2].is_empty() && !meant.line[2].is_ascii());
    assert_eq!(meant.body, seen.body);
    assert_eq!(sent.len() - meant.rest.len(), passed.length);
    let says = |option: &str| {
        let mut options = meant
            .values("connection")
            .flat_map(|value| value.split(|&byte| byte == b','));
        options.any(|other| other.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    let framed = meant
        .values("content-length")
        .chain(meant.values("transfer-encoding"));
    let ends = without_body || framed.count() > 0;
    let keeps_alive = match meant.line[0] {
        "HTTP/1.0" => says("keep-alive"),
        _ => true,
    };
    assert_eq!(
        passed.instance_keeps_alive,
        ends && keeps_alive && !says("close")
    );
    let end_to_end = |message: &Message<'_>| -> Vec<(String, Vec<u8>)> {
        let fields = message.fields.iter();
        fields
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
            .filter(|(name, _)| {
                let framing = ["content-length", "transfer-encoding", "trailer"];
                // The proxy adds a `Date` to a response that lacks it.
                (name != "date" || meant.values("date").next().is_some())
                    && !is_hop_by_hop(&name.replace('_', "-"))
                    && !framing.contains(&&*name.replace('_', "-"))
                    && !says(name)
            })
            .collect()
    };
    assert_eq!(end_to_end(&meant), end_to_end(&seen));
}
