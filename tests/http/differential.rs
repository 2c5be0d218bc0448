//! A differential test of the response parser: hyper's client reads generated responses, valid and
//! damaged ones, once directly from the instance and once through the worker, and must see the
//! same.
//!
//! Where the worker refuses what hyper accepts, [`strictness`] must know the reason. The worker
//! accepts nothing that hyper refuses.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::kit::PATIENCE;
use crate::peers::{Peer, Stage};

/// A response as an instance sends it, and the method of its request.
#[derive(Clone)]
struct Sent {
    to_head: bool,
    bytes: Vec<u8>,
    /// The offsets at which the response is split into separate writes.
    cuts: Vec<usize>,
    /// True if the instance closes the connection after the response.
    close: bool,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = if self.to_head { "HEAD" } else { "GET" };
        let end = if self.close { " and the end" } else { "" };
        write!(
            f,
            "to {method}: {:?}{end}, cut at {:?}",
            self.bytes.escape_ascii().to_string(),
            self.cuts
        )
    }
}

/// Fields, sorted by name, and by value where a name occurs several times.
type Fields = Vec<(String, Vec<u8>)>;

/// A response as a client understands it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    interims: Vec<(u16, Fields)>,
    status: u16,
    fields: Fields,
    /// The body and its trailers; `None` if the response broke off.
    body: Option<(Vec<u8>, Fields)>,
}

fn fields(map: &HeaderMap) -> Fields {
    let fields = map.iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let mut fields: Fields = fields.collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

impl Seen {
    /// Removes what a proxy must not pass on: fields about the connection, trailers whose meaning
    /// would have to be known before the body, and `Content-Length` unless no body follows.
    fn passed_on(mut self, to_head: bool) -> Seen {
        let has_body = !to_head && ![204, 304].contains(&self.status);
        let status = self.status;
        pass_on(&mut self.fields, |name| {
            name == "content-length" && (has_body || status == 204) || name == "trailer"
        });
        // The proxy adds this field if there is none. What the instance writes there is no time.
        let fields = &mut self.fields;
        fields.retain(|(name, value)| name != "date" || !value.ends_with(b" GMT"));
        for (_, fields) in &mut self.interims {
            pass_on(fields, |name| {
                ["content-length", "trailer", "content_length"].contains(&name)
            });
        }
        if let Some((_, trailers)) = &mut self.body {
            trailers.retain(|(name, _)| name.starts_with("x-"));
        }
        self
    }
}

fn pass_on(fields: &mut Fields, unwanted: impl Fn(&str) -> bool) {
    let named = |value: &[u8]| -> Vec<String> {
        let value = String::from_utf8_lossy(value).to_lowercase();
        value
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect()
    };
    let connection = fields.iter().filter(|(name, _)| name == "connection");
    let nominated: Vec<String> = connection.flat_map(|(_, value)| named(value)).collect();
    // Fields that an instance cannot remove by naming them in `Connection`, see `is_end_to_end`.
    let protected = |name: &str| ["date", "set-cookie", "content-type"].contains(&name);
    fields.retain(|(name, _)| {
        let hop = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
        ];
        let nominated = nominated.contains(name) && !protected(name);
        !hop.contains(&&**name) && !nominated && !unwanted(name)
    });
}

/// Sends a request with hyper's client and reads the response, which is `None` if hyper refuses it.
/// The returned sender knows whether another request could follow.
async fn read(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    to_head: bool,
) -> (Option<Seen>, SendRequest<Empty<Bytes>>) {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let method = if to_head { Method::HEAD } else { Method::GET };
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a.example");
    let mut request = request.body(Empty::new()).unwrap();
    let interims = Arc::new(Mutex::new(Vec::new()));
    let heard = interims.clone();
    hyper::ext::on_informational(&mut request, move |interim| {
        let mut heard = heard.lock().unwrap();
        heard.push((interim.status().as_u16(), fields(interim.headers())));
    });
    let response = timeout(PATIENCE, sender.send_request(request)).await;
    let Ok(response) = response.expect("a response comes in time") else {
        return (None, sender);
    };
    let (head, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect())
        .await
        .expect("the body ends in time");
    let body = body.ok().map(|body| {
        let trailers = body.trailers().map(fields).unwrap_or_default();
        (body.to_bytes().to_vec(), trailers)
    });
    let interims = std::mem::take(&mut *interims.lock().unwrap());
    let seen = Seen {
        interims,
        status: head.status.as_u16(),
        fields: fields(&head.headers),
        body,
    };
    (Some(seen), sender)
}

impl Sent {
    async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) {
        let mut from = 0;
        for cut in self.cuts.iter().copied().chain([self.bytes.len()]) {
            // The reader may have closed the connection already.
            let _ = stream.write_all(&self.bytes[from..cut]).await;
            let _ = stream.flush().await;
            tokio::task::yield_now().await;
            from = cut;
        }
        if self.close {
            let _ = stream.shutdown().await;
        }
    }

    /// Returns what hyper's client sees without the worker, and whether it would send another
    /// request.
    async fn read_directly(&self) -> (Option<Seen>, bool) {
        let (client, mut instance) = tokio::io::duplex(64 << 10);
        let serve = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(instance.read_u8().await.unwrap());
            }
            self.write(&mut instance).await;
        };
        let ((), (seen, mut sender)) = tokio::join!(serve, read(client, self.to_head));
        let reusable = sender.ready().await.is_ok();
        (seen, reusable)
    }

    /// Returns what hyper's client sees through the worker, and whether the worker uses the
    /// connection to the instance again.
    async fn read_through(&self, stage: &mut Stage) -> (Option<Seen>, bool) {
        let client = stage.connect().await.stream;
        let serve = async {
            let mut instance = stage.accept().await;
            instance.receive_head().await;
            self.write(&mut instance.stream).await;
            instance
        };
        let (instance, (seen, _sender)) = tokio::join!(serve, read(client, self.to_head));
        (seen, is_reused(stage, instance).await)
    }
}

/// Returns true if the next request comes on this connection, and answers that request.
async fn is_reused(stage: &mut Stage, mut instance: Peer) -> bool {
    let mut client = stage
        .send("GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    let mut byte = [0];
    let end = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
    let reused = tokio::select! {
        Ok(1) = instance.stream.peek(&mut byte) => {
            instance.receive_head().await;
            instance.send(end).await;
            true
        }
        mut other = stage.accept() => {
            other.receive_head().await;
            other.send(end).await;
            false
        }
    };
    client.receive_head().await;
    reused
}

/// Returns the reason for which the worker refuses what hyper accepts; `None` if there is none.
fn strictness(sent: &Sent) -> Option<&'static str> {
    let mut rest = &sent.bytes[..];
    let mut slots = [httparse::EMPTY_HEADER; 100];
    let head = loop {
        let mut head = httparse::Response::new(&mut slots);
        let httparse::Status::Complete(length) = head.parse(rest).ok()? else {
            return None;
        };
        rest = &rest[length..];
        match head.code? {
            101 => return Some("an upgrade that nobody asked for"),
            100..200 => slots = [httparse::EMPTY_HEADER; 100],
            _ => break head,
        }
    };
    let values = |name: &str| -> Vec<&[u8]> {
        let fields = head.headers.iter();
        let fields = fields.filter(|field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value).collect()
    };
    match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([_, _, ..], _) | (_, [_, _, ..]) | ([_], [_]) => Some("a body framed more than once"),
        (_, [_]) if head.version == Some(0) => Some("a coding that HTTP/1.0 does not have"),
        (_, [coding]) if !coding.eq_ignore_ascii_case(b"chunked") => Some("another coding"),
        ([length], _) if !is_number(length) => {
            Some("a length that is no number, where no body follows")
        }
        (_, [_]) => odd_chunk(rest),
        _ => None,
    }
}

/// Returns what is unusual, though valid, in the size line of one of these chunks.
fn odd_chunk(mut body: &[u8]) -> Option<&'static str> {
    loop {
        let end = body.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, extension) = match body[..end].iter().position(|&byte| byte == b';') {
            Some(at) => (&body[..at], &body[at..end]),
            None => (&body[..end], &b""[..]),
        };
        let size = line.trim_ascii_end();
        if extension.iter().any(|byte| byte.is_ascii_control()) {
            return Some("a control character in an extension");
        } else if extension.is_empty() && size != line {
            return Some("white space behind a size");
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            let trailers = &body[end + 1..];
            let bare = |pair: &[u8]| pair[0] != b'\r' && pair[1] == b'\n';
            return trailers
                .windows(2)
                .any(bare)
                .then_some("a line of the trailer section that ends with LF alone");
        }
        body = body.get(end + 2 + size + 2..)?;
    }
}

fn is_number(value: &[u8]) -> bool {
    let text = std::str::from_utf8(value).unwrap_or_default();
    !text.starts_with('+') && text.parse::<u64>().is_ok()
}

/// Compares what hyper's client makes of one response with and without the worker.
async fn compare(stage: &mut Stage, sent: &Sent) -> Result<(), TestCaseError> {
    let (direct, reusable) = sent.read_directly().await;
    let (through, reused) = sent.read_through(stage).await;
    let expected = direct.map(|seen| seen.passed_on(sent.to_head));
    let refused = through.as_ref().is_none_or(|seen| {
        // The 502 is the worker's own answer, unless the instance has sent a 502 itself.
        let sent_itself = expected
            .as_ref()
            .is_some_and(|expected| expected.status == 502);
        seen.body.is_none() || (seen.status == 502 && !sent_itself)
    });
    if refused {
        prop_assert!(!reused);
        let broken = expected.as_ref().is_none_or(|seen| seen.body.is_none());
        prop_assert!(
            broken || strictness(sent).is_some(),
            "{expected:?}, but {through:?}"
        );
        return Ok(());
    }
    let through = through.map(|seen| seen.passed_on(sent.to_head));
    prop_assert_eq!(&expected, &through);
    if !sent.close {
        prop_assert_eq!(reusable, reused);
    }
    Ok(())
}

/// Frames a body in one of several ways, and returns the fields that describe the framing.
fn framed(body: Vec<u8>) -> impl Strategy<Value = (String, Vec<u8>)> {
    let length = body.len();
    let of = body.clone();
    let plain = move |head: String| (head, of.clone());
    prop_oneof![
        4 => Just(format!("Content-Length: {length}\r\n")).prop_map(plain.clone()),
        1 => Just(format!("content-length:  00{length} \r\n")).prop_map(plain.clone()),
        2 => Just(String::new()).prop_map(plain.clone()),
        4 => chunked(body.clone()).prop_map(|body| ("Transfer-Encoding: chunked\r\n".to_owned(), body)),
        1 => chunked(body.clone()).prop_map(|body| ("transfer-encoding: Chunked\r\nTrailer: x-t\r\n".to_owned(), body)),
        1 => prop_oneof![
            Just(format!("Content-Length: {length}\r\nContent-Length: {length}\r\n")),
            Just(format!("Content-Length: {length}, {length}\r\n")),
            Just(format!("Content-Length: +{length}\r\n")),
            Just("Content-Length: 18446744073709551616\r\n".to_owned()),
            Just("Content-Length: \r\n".to_owned()),
            Just("Transfer-Encoding: gzip\r\n".to_owned()),
        ]
        .prop_map(plain),
        1 => (
            chunked(body.clone()),
            prop_oneof![
                Just(format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n")),
                Just("Transfer-Encoding: gzip, chunked\r\n".to_owned()),
                Just("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".to_owned()),
            ],
        )
            .prop_map(|(body, head)| (head, body)),
    ]
}

fn chunked(body: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let sizes = prop::collection::vec(
        (
            1..80_usize,
            "(;[a-z]{1,3}(=[a-z0-9\"]{0,4})?| ;x|)",
            0..3_usize,
        ),
        1..6,
    );
    let trailers = "((X-[A-C]{1,2}|Content-Length|Host|Set-Cookie): [a-z0-9]{0,5}\r\n){0,3}";
    (sizes, trailers).prop_map(move |(sizes, trailers)| {
        let mut wire = Vec::new();
        let mut rest = &body[..];
        for (size, extension, zeros) in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (data, left) = rest.split_at(rest.len().min(*size));
            let zeros = "0".repeat(*zeros);
            wire.extend_from_slice(format!("{zeros}{:x}{extension}\r\n", data.len()).as_bytes());
            wire.extend_from_slice(data);
            wire.extend_from_slice(b"\r\n");
            rest = left;
        }
        wire.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        wire
    })
}

/// One byte replaced, inserted or removed, or everything after a place cut off.
#[derive(Debug, Clone)]
enum Damage {
    Replaced(u8),
    Inserted(u8),
    Removed,
    CutOff,
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte = || prop::sample::select(&b"\r\n\0\t :;,0159afxZ-_\x7f\x80\xff"[..]);
    prop_oneof![
        byte().prop_map(Damage::Replaced),
        byte().prop_map(Damage::Inserted),
        Just(Damage::Removed),
        Just(Damage::CutOff),
    ]
}

fn responses() -> impl Strategy<Value = Sent> {
    let body = prop::collection::vec(any::<u8>(), 0..200);
    let interims = "(HTTP/1\\.1 (100 Continue|102 Processing|103 Early Hints)\r\n(Link: </[a-z]>\r\n|Connection: x-a\r\nX-A: 1\r\n)?\r\n){0,2}";
    let line = "HTTP/1\\.(1|1|1|1|0) (200 OK|200 OK|200 OK|404 Not Found|204 No Content|304 Not Modified|206 |599|101 S)\r\n";
    let fields = "((Server: [a-z]{1,9}|X-[A-D]: [ -~]{0,9}|Set-Cookie: a=[0-9]|Date: d|Connection: (close|keep-alive|x-a, X-B|date)\
        |Keep-Alive: timeout=5|Upgrade: h2c|Proxy-Connection: close|TE: trailers|Content-Type: a/b; c=\"d\"|X-U: \u{e9}):?\r\n){0,5}";
    let whole = (
        interims,
        line,
        fields,
        body.prop_flat_map(framed),
        any::<bool>(),
    );
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let damage = prop::option::weighted(0.4, (any::<prop::sample::Index>(), damage()));
    (whole, cuts, damage, prop::bool::weighted(0.15)).prop_map(
        |((interims, line, fields, (framing, body), close), cuts, damage, to_head)| {
            let without_body = to_head || line.contains(" 204 ") || line.contains(" 304 ");
            let body = if without_body { Vec::new() } else { body };
            let head = format!("{interims}{line}{fields}{framing}\r\n");
            let mut bytes = [head.as_bytes(), &body].concat();
            let delimited =
                framing.contains("ontent-") || framing.to_lowercase().contains("chunked");
            // A response without any other end ends with the connection.
            let close = close || damage.is_some() || !(delimited || without_body);
            if let Some((at, damage)) = damage {
                let at = at.index(bytes.len());
                match damage {
                    Damage::Replaced(byte) => bytes[at] = byte,
                    Damage::Inserted(byte) => bytes.insert(at, byte),
                    Damage::CutOff => bytes.truncate(at.max(1)),
                    Damage::Removed => drop(bytes.remove(at)),
                }
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            Sent {
                to_head,
                bytes,
                cuts,
                close,
            }
        },
    )
}

#[test]
fn hyper_sees_the_same_response_directly_and_through_the_worker() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let stage = RefCell::new(runtime.block_on(Stage::new(1)));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&responses(), |sent| {
        runtime.block_on(compare(&mut stage.borrow_mut(), &sent))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
