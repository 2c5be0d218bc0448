//! An instance that records every byte that it receives, parses it as strictly as possible, and
//! answers each request with what it has understood.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::kit::PATIENCE;
use crate::peers::Instance;

/// A path whose response has a body of [`BIG_LENGTH`] bytes.
pub(crate) const BIG: &str = "/big";
pub(crate) const BIG_LENGTH: usize = 20 << 20;

/// A handle to what the instance has received.
#[derive(Clone)]
pub(crate) struct Recorder {
    record: Arc<Mutex<Record>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Record {
    /// All bytes of each connection.
    connections: Vec<Vec<u8>>,
    /// The complete requests of all connections in the order in which they came, as `METHOD
    /// HOST/TARGET BODY`.
    requests: Vec<String>,
    /// What the strict parser has refused.
    faults: Vec<String>,
    /// The number of open connections on which part of a request has come.
    begun: usize,
}

impl Recorder {
    /// Lets the instance answer by itself from now on.
    pub(crate) fn start(mut instance: Instance) -> Recorder {
        let recorder = Recorder {
            record: Arc::default(),
            changed: Arc::default(),
        };
        let recording = recorder.clone();
        tokio::spawn(async move {
            loop {
                let stream = instance.accept_at_leisure().await.stream;
                tokio::spawn(recording.clone().serve(stream));
            }
        });
        recorder
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    async fn serve(self, mut stream: TcpStream) {
        let connection = {
            let mut record = self.record();
            record.connections.push(Vec::new());
            record.connections.len() - 1
        };
        let mut unread = Vec::new();
        loop {
            let mut piece = Vec::new();
            let received = stream.read_buf(&mut piece).await.unwrap_or(0);
            let mut answers = String::new();
            let mut bytes_to_come = 0;
            {
                let mut record = self.record();
                record.begun -= usize::from(!unread.is_empty());
                unread.extend_from_slice(&piece);
                record.connections[connection].extend_from_slice(&piece);
                while let Some((request, length)) = record.read(&unread) {
                    unread.drain(..length);
                    write!(answers, "{}", Answer(&request)).unwrap();
                    if request.ends_with(BIG) {
                        bytes_to_come = BIG_LENGTH;
                    }
                    record.requests.push(request);
                }
                record.begun += usize::from(!unread.is_empty() && received > 0);
            }
            self.changed.notify_waiters();
            let is_good = self.record().faults.is_empty();
            if received == 0 || !is_good || stream.write_all(answers.as_bytes()).await.is_err() {
                return;
            }
            while bytes_to_come > 0 {
                let piece = [b'x'; 32 << 10];
                let count = piece.len().min(bytes_to_come);
                if stream.write_all(&piece[..count]).await.is_err() {
                    return;
                }
                bytes_to_come -= count;
            }
        }
    }

    /// Waits until no open connection has part of a request, and returns the complete requests
    /// since the last call.
    pub(crate) async fn take(&self) -> Vec<String> {
        self.until(
            "the rest of a request, or the end of its connection",
            |record| record.begun == 0,
        )
        .await;
        let mut record = self.record();
        assert_eq!(record.faults, [""; 0], "all bytes: {}", record.all());
        std::mem::take(&mut record.requests)
    }

    /// Waits until this number of complete requests was received.
    pub(crate) async fn saw_at_least(&self, count: usize) {
        self.until("requests", |record| record.requests.len() >= count)
            .await;
    }

    /// Waits until this number of requests has begun without being complete.
    pub(crate) async fn saw_begun(&self, count: usize) {
        self.until("parts of requests", |record| record.begun >= count)
            .await;
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Record) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if is_so(&self.record()) {
                    return;
                }
                changed.await;
            }
        };
        let wait = timeout(PATIENCE, wait).await;
        wait.unwrap_or_else(|_| panic!("expected {what}, got: {}", self.all()));
    }

    /// Returns all bytes received so far, for messages.
    pub(crate) fn all(&self) -> String {
        self.record().all()
    }
}

impl Record {
    fn read(&mut self, bytes: &[u8]) -> Option<(String, usize)> {
        match read(bytes) {
            Ok(request) => request,
            Err(fault) => {
                self.faults
                    .push(format!("{fault}: {}", bytes.escape_ascii()));
                None
            }
        }
    }

    fn all(&self) -> String {
        let connections = self.connections.iter();
        let connections = connections.map(|bytes| bytes.escape_ascii().to_string());
        connections.collect::<Vec<_>>().join("\n")
    }
}

/// The response to a request, which it repeats in a field and in its body. For [`BIG`] it is the
/// head alone.
struct Answer<'a>(&'a str);

impl std::fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answer(echo) = self;
        if echo.ends_with(BIG) {
            return write!(f, "HTTP/1.1 200 OK\r\nContent-Length: {BIG_LENGTH}\r\n\r\n");
        }
        let length = echo.len();
        write!(
            f,
            "HTTP/1.1 200 OK\r\nEcho: {echo}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        match echo.starts_with("HEAD ") {
            true => Ok(()),
            false => f.write_str(echo),
        }
    }
}

fn is_token(text: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_char)
}

/// Parses the request at the start of these bytes, and returns it with its length; `None` if it is
/// incomplete. Each request has exactly one accepted spelling.
fn read(bytes: &[u8]) -> Result<Option<(String, usize)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let lines: Vec<&str> = head.split("\r\n").collect();
    if lines
        .iter()
        .any(|line| line.contains(|c: char| c.is_ascii_control()))
    {
        return Err("a control character, or a bare CR or LF");
    }
    let parts: Vec<&str> = lines[0].split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else {
        return Err("a request line");
    };
    if !is_token(method) || !(target.starts_with('/') || target == "*") {
        return Err("a method or a target");
    }
    let mut fields = Vec::new();
    for line in &lines[1..] {
        let (name, value) = line.split_once(": ").ok_or("a field")?;
        if !is_token(name) || value.trim() != value {
            return Err("a field");
        }
        fields.push((name.to_lowercase(), value.to_owned()));
    }
    let only = |wanted: &[&str]| -> Result<Option<&(String, String)>, &'static str> {
        let mut found = fields.iter().filter(|(name, _)| {
            let name = name.replace('_', "-");
            wanted.contains(&&*name)
        });
        match (found.next(), found.next()) {
            (first, None) => Ok(first),
            _ => Err("a field twice, or two that must not be together"),
        }
    };
    let (_, host) = only(&["host"])?.ok_or("no Host")?;
    let start = end + 4;
    let found = match only(&["content-length", "transfer-encoding"])? {
        None => Some((Vec::new(), start)),
        Some((name, value)) if name == "content-length" => {
            let length: usize = value.parse().map_err(|_| "a length")?;
            let body = bytes.get(start..start + length);
            body.map(|body| (body.to_vec(), start + length))
        }
        Some((name, value)) if name == "transfer-encoding" && value == "chunked" => {
            read_chunks(bytes, start)?
        }
        Some(_) => return Err("a coding"),
    };
    Ok(found.map(|(body, length)| {
        let body = match body.len() {
            0..60 => body.escape_ascii().to_string(),
            length => format!("{length} bytes"),
        };
        let request = format!("{method} {host}{target} {body}");
        (request.trim_end().to_owned(), length)
    }))
}

/// Decodes a chunked body, and returns its data and the offset of its end; `None` if it is
/// incomplete.
fn read_chunks(bytes: &[u8], mut at: usize) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let mut body = Vec::new();
    let line = |at: usize| -> Option<&[u8]> {
        let rest = &bytes[at..];
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        Some(&rest[..end])
    };
    loop {
        let Some(size) = line(at) else {
            return Ok(None);
        };
        at += size.len() + 2;
        let size = std::str::from_utf8(size).map_err(|_| "a chunk size")?;
        if !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("a chunk size");
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| "a chunk size")?;
        if size == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else {
            return Ok(None);
        };
        let data = chunk.strip_suffix(b"\r\n").ok_or("the end of a chunk")?;
        body.extend_from_slice(data);
        at += size + 2;
    }
    loop {
        let Some(trailer) = line(at) else {
            return Ok(None);
        };
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Ok(Some((body, at)));
        }
        let name = trailer.split(|&byte| byte == b':').next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).to_lowercase();
        if ["content-length", "transfer-encoding", "host"]
            .contains(&name.replace('_', "-").as_str())
        {
            return Err("a trailer");
        }
    }
}

/// Lists the responses in these bytes: what the instance says it has seen, or else the status.
pub(crate) fn answers(mut received: &str) -> Vec<String> {
    let mut answers = Vec::new();
    while !received.is_empty() {
        let (head, rest) = received.split_once("\r\n\r\n").expect("a whole head");
        let field = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let echo = field("Echo");
        let status = head.split(' ').nth(1).expect("a status").to_owned();
        let length = match echo {
            Some(echo) if echo.starts_with("HEAD ") => 0,
            _ => field("Content-Length").map_or(0, |length| length.parse().unwrap()),
        };
        let (body, rest) = rest.split_at_checked(length).expect("a whole body");
        if let Some(echo) = echo {
            assert!(body.is_empty() || body == echo, "{body} is not {echo}");
        }
        if status != "100" {
            answers.push(echo.map_or(status, str::to_owned));
        }
        received = rest;
    }
    answers
}
