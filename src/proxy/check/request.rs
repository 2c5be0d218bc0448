//! The properties of requests that a client sends one after the other on one connection, and of
//! what instances get.

use super::pieces::{PassedBody, PieceReceiver, Pieces, assert_passed_on, is_hop_by_hop, parts};
use super::reader::{Context, ENDED_EARLY, Manner, Message};
use crate::proxy::http::headers::{RequestSender, write_request};
use crate::proxy::http::http1::{
    Encoding, FieldKind, Framing, LONGEST_REQUEST_HEAD, RequestHead, slots,
};
use crate::proxy::http::request_id::RequestId;

const ADDRESS: &str = "192.0.2.1";

/// What an instance gets for one request.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    head: Vec<u8>,
    /// The body in the framing in which the instance gets it.
    wire: Vec<u8>,
    body: PassedBody,
    /// Where the next request begins.
    end: usize,
}

/// The id of every request.
const ID: RequestId = RequestId::Own([b'0'; 32]);

/// Panics if a property is violated.
pub fn check(input: &[u8]) {
    let Some((flags, sent, pieces)) = parts(input) else {
        return;
    };
    let sender = RequestSender {
        address: ADDRESS,
        secure: false,
        trusted: flags & 1 != 0,
        forwarded: false,
    };
    let whole = pass(sent, Pieces::WHOLE, sender);
    let cut = pass(sent, pieces, sender);
    assert_eq!(whole.len(), cut.len());
    let mut begin = 0;
    for (whole, cut) in whole.iter().zip(&cut) {
        assert_eq!(whole.head, cut.head);
        assert_eq!(whole.body.end, cut.body.end);
        if whole.body.end.is_ok() {
            // What came in the same piece as an error was not passed on, so it may differ.
            assert_eq!((&whole.body, whole.end), (&cut.body, cut.end));
        }
        for passed in [whole, cut] {
            check_passed(&sent[begin..], passed, passed.end - begin, sender);
        }
        begin = whole.end;
    }
}

/// Takes requests from the connection until there are no more, and writes each for an instance.
fn pass(sent: &[u8], pieces: Pieces, sender: RequestSender<'_>) -> Vec<Passed> {
    let mut receiver = PieceReceiver::new(sent, pieces);
    let mut all = Vec::new();
    loop {
        while let [b'\r', b'\n', ..] | [b'\n', ..] = receiver.unread() {
            receiver.start += if receiver.unread()[0] == b'\r' { 2 } else { 1 };
        }
        let mut slots = slots();
        let head = match RequestHead::parse(receiver.unread(), &mut slots) {
            Ok(Some(head)) if head.length <= LONGEST_REQUEST_HEAD => head,
            Ok(None) if receiver.receive() => continue,
            _ => return all,
        };
        let mut bytes = Vec::new();
        write_request(&head, sender, &ID, &mut bytes);
        // Only the host is written more than once.
        assert!(bytes.len() <= head.length + head.host.len() + 256);
        receiver.start += head.length;
        let encoding = match head.framing {
            Framing::Chunked => Encoding::Chunked,
            Framing::None | Framing::Length(_) => Encoding::Plain,
            Framing::UntilClose => panic!("a request does not end with the connection"),
        };
        let mut wire = Vec::new();
        let body = receiver.pass_body(head.framing, encoding, &mut wire);
        let complete = body.end.is_ok();
        all.push(Passed {
            head: bytes,
            wire,
            body,
            end: receiver.start,
        });
        if !complete {
            return all;
        }
    }
}

/// Checks one request that was passed on. `sent` are the bytes from the beginning of this request
/// on, of which the proxy has taken `length` for it.
fn check_passed(sent: &[u8], passed: &Passed, length: usize, sender: RequestSender<'_>) {
    let wire = [&passed.head[..], &passed.wire].concat();
    let seen = match (
        Message::read(&wire, Context::Request, Manner::Strict),
        passed.body.end,
    ) {
        (Ok(seen), Ok(())) => seen,
        (Err(ENDED_EARLY), Err(_)) => return,
        (seen, end) => panic!("{end:?}, but the instance sees {seen:?}"),
    };
    assert!(seen.rest.is_empty(), "there is another request: {seen:?}");
    assert_eq!(seen.body, passed.body.data);
    assert_passed_on(&seen);
    assert_eq!(seen.values("host").count(), 1);
    let about_connection = ["connection", "te", "upgrade"].map(|name| {
        let values: Vec<_> = seen.values(name).collect();
        assert!(values.len() <= 1, "{name}: {values:?}");
        values.first().copied()
    });
    match about_connection {
        [None, None, None] => {}
        [Some(b"TE"), Some(b"trailers"), None] => {}
        [Some(b"TE, Upgrade"), Some(b"trailers"), Some(protocol)]
        | [Some(b"Upgrade"), None, Some(protocol)] => {
            assert!(!protocol.eq_ignore_ascii_case(b"h2c"));
            assert!(seen.body.is_empty());
        }
        other => panic!("{other:?}"),
    }
    let known: Vec<_> = seen.values("x-forwarded-for").collect();
    assert_eq!(known.len(), 1);
    for (name, value) in &seen.fields {
        let name = name.to_ascii_lowercase();
        let checked = ["connection", "te", "upgrade"].contains(&&*name);
        assert!(checked || !is_hop_by_hop(&name), "{name}");
        if sender.trusted {
            continue;
        }
        assert!(!["forwarded", "x-real-ip"].contains(&&*name), "{name}");
        let plain = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        if plain.starts_with("x-forwarded-") && plain.len() > "x-forwarded-".len() {
            assert_eq!(name, plain);
            let told: &[u8] = match &*name {
                "x-forwarded-for" => ADDRESS.as_bytes(),
                "x-forwarded-proto" => b"http",
                "x-forwarded-host" => seen.values("host").next().unwrap_or_default(),
                _ => panic!("{name}"),
            };
            assert_eq!(*value, told, "{name}");
        }
    }
    // Any other reader must understand what was sent in the same way.
    let meant = Message::read(sent, Context::Request, Manner::Tolerant).unwrap();
    assert_eq!(meant.line[0], seen.line[0]);
    assert!(meant.line[1] == seen.line[1] || !meant.line[1].starts_with('/'));
    assert_eq!(meant.body, seen.body);
    assert_eq!(sent.len() - meant.rest.len(), length);
    if meant.line[1].starts_with('/') {
        let host =
            |message: &Message<'_>| message.values("host").next().unwrap_or_default().to_vec();
        assert_eq!(host(&meant), host(&seen));
    }
    let nominated: Vec<_> = meant
        .values("connection")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(|name| name.trim_ascii().to_ascii_lowercase())
        .collect();
    let stays = |name: &str| {
        let plain = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let passed = [
            FieldKind::Other,
            FieldKind::Date,
            FieldKind::MethodOverride,
            FieldKind::Authorization,
            FieldKind::Challenge,
        ];
        let about_proxies = !passed.contains(&FieldKind::of(&plain));
        let framing = [
            "content-length",
            "transfer-encoding",
            "trailer",
            "host",
            "expect",
        ];
        !about_proxies
            && !is_hop_by_hop(&plain)
            && !framing.contains(&&*plain)
            && !nominated.iter().any(|other| other == name.as_bytes())
    };
    let end_to_end = |message: &Message<'_>| -> Vec<(String, Vec<u8>)> {
        let fields = message.fields.iter();
        fields
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
            .filter(|(name, _)| stays(name))
            .collect()
    };
    assert_eq!(end_to_end(&meant), end_to_end(&seen));
}
