//! A strict HTTP/1.1 client: a response must be exactly what the request asked for, framed as the
//! standard says.
//!
//! The client repairs nothing that a browser would repair silently, and retries nothing. So each
//! [`Fault`] that it reports is a request that somebody would have lost.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::{Comparison, Pattern};

/// The limit for the head of a response, in bytes.
const LONGEST_HEAD: usize = 64 << 10;

/// How much is read or written at a time, in bytes.
const PIECE: usize = 128 << 10;

/// The reason why a request did not get the right response.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The client could not connect.
    #[error("connect: {0}")]
    Connect(io::Error),
    /// The connection ended before the first byte of the response.
    #[error("connection closed before the response")]
    Closed,
    /// The connection broke before the first byte of the response.
    #[error("connection broken before the response: {0}")]
    Broken(io::Error),
    /// The response stopped before its end.
    #[error("response cut off: {0}")]
    CutOff(String),
    /// The response is not HTTP.
    #[error("malformed response: {0}")]
    Malformed(String),
    /// The response has another status than the right one.
    #[error("status {status}: {body:?}")]
    Status {
        /// The status of the response.
        status: u16,
        /// The beginning of the body of the response.
        body: String,
    },
    /// The response is not the right response to the request.
    #[error("wrong response: {0}")]
    Wrong(String),
    /// The response took longer than the limit of the client.
    #[error("no end within {0:?}, at: {1}")]
    TimedOut(std::time::Duration, &'static str),
}

impl Fault {
    /// Returns true if a part of the response had arrived.
    pub fn answered(&self) -> bool {
        match self {
            Fault::Connect(_) | Fault::Closed | Fault::Broken(_) => false,
            Fault::TimedOut(_, at) => *at == "body",
            Fault::CutOff(_) | Fault::Malformed(_) | Fault::Status { .. } | Fault::Wrong(_) => true,
        }
    }
}

/// A request of the client.
#[derive(Debug, Clone)]
pub struct Request {
    method: &'static str,
    target: String,
    headers: String,
    body: RequestBody,
}

#[derive(Debug, Clone)]
pub(crate) enum RequestBody {
    None,
    Pattern(Pattern, u64),
    Chunks(Vec<Vec<u8>>),
}

impl Request {
    pub(crate) fn method(&self) -> &'static str {
        self.method
    }

    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn body(&self) -> &RequestBody {
        &self.body
    }

    /// Makes a `GET`.
    pub fn get(target: impl Into<String>) -> Request {
        Request::new("GET", target)
    }

    /// Makes a request of any method, without a body.
    pub fn new(method: &'static str, target: impl Into<String>) -> Request {
        Request {
            method,
            target: target.into(),
            headers: String::new(),
            body: RequestBody::None,
        }
    }

    /// Makes a `POST` of the first bytes of a pattern, with `Content-Length`.
    pub fn post(target: impl Into<String>, pattern: Pattern, length: u64) -> Request {
        let mut request =
            Request::new("POST", target).header("content-length", &length.to_string());
        request.body = RequestBody::Pattern(pattern, length);
        request
    }

    /// Makes a chunked `POST` of these pieces.
    pub fn post_chunked(target: impl Into<String>, chunks: Vec<Vec<u8>>) -> Request {
        let mut request = Request::new("POST", target).header("transfer-encoding", "chunked");
        request.body = RequestBody::Chunks(chunks);
        request
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Request {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    fn head(&self, host: &str) -> Vec<u8> {
        format!(
            "{} {} HTTP/1.1\r\nhost: {host}\r\n{}\r\n",
            self.method, self.target, self.headers
        )
        .into_bytes()
    }
}

/// The head of a response.
#[derive(Debug, Clone)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The headers in their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// True if a `100 Continue` came just before this head.
    pub continued: bool,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

impl Head {
    /// Returns the value of the header of this name, if there is exactly one.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(other, _)| other == name);
        let first = values.next()?;
        values.next().is_none().then_some(first.1.as_str())
    }

    /// Returns true if the server announced to close the connection after this response.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The head of the response.
    pub head: Head,
    /// The body of the response.
    pub body: Vec<u8>,
    /// The trailers of a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The receiver of the body of a response.
#[derive(Debug)]
pub enum Sink {
    /// Keeps the body, up to this many bytes.
    Keep(Vec<u8>, usize),
    /// Compares the body with a pattern.
    Compare(Comparison),
}

impl Sink {
    /// Makes a sink that keeps up to 4 MiB.
    pub fn keep() -> Sink {
        Sink::Keep(Vec::new(), 4 << 20)
    }

    /// Returns the bytes that were kept, as text.
    pub fn text(&self) -> String {
        match self {
            Sink::Keep(kept, _) => String::from_utf8_lossy(kept).into_owned(),
            Sink::Compare(_) => String::new(),
        }
    }

    /// Returns how many bytes have arrived.
    pub fn length(&self) -> u64 {
        match self {
            Sink::Keep(kept, _) => kept.len() as u64,
            Sink::Compare(comparison) => comparison.length(),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match self {
            Sink::Keep(kept, limit) if kept.len() + bytes.len() > *limit => {
                Err(Fault::Wrong(format!("more than {limit} bytes")))
            }
            Sink::Keep(kept, _) => {
                kept.extend_from_slice(bytes);
                Ok(())
            }
            Sink::Compare(comparison) => comparison
                .update(bytes)
                .map_err(|offset| Fault::Wrong(format!("byte {offset} of the body differs"))),
        }
    }
}

/// Sends one `GET` on a new connection, and returns the response.
pub async fn get(address: SocketAddr, host: &str, target: &str) -> Result<Response, Fault> {
    let mut connection = Connection::open(address, host).await?;
    connection.exchange(&Request::get(target)).await
}

/// What came first: the end of the request, or the beginning of its response.
enum Outcome {
    Written(io::Result<()>),
    Early(io::Result<Vec<u8>>),
}

/// A client's connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    host: String,
    arrived: Vec<u8>,
    requests: u64,
    /// What the connection waits for, for the report of a timeout.
    pub at: &'static str,
}

impl Connection {
    /// Connects to the server; `host` is the `Host` of all requests.
    pub async fn open(address: SocketAddr, host: &str) -> Result<Connection, Fault> {
        let stream = TcpStream::connect(address).await;
        Connection::over(stream.map_err(Fault::Connect)?, host)
    }

    /// Connects to the server from this address, which has to be one of IPv4.
    pub async fn open_from(
        client: IpAddr,
        address: SocketAddr,
        host: &str,
    ) -> Result<Connection, Fault> {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((client, 0).into())?;
            socket.connect(address).await
        };
        Connection::over(connect.await.map_err(Fault::Connect)?, host)
    }

    fn over(stream: TcpStream, host: &str) -> Result<Connection, Fault> {
        stream.set_nodelay(true).map_err(Fault::Connect)?;
        Ok(Connection {
            stream,
            host: host.to_owned(),
            arrived: Vec::new(),
            requests: 0,
            at: "connection",
        })
    }

    /// Returns how many requests were sent on this connection.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Sends a request, and reads the whole response.
    pub async fn exchange(&mut self, request: &Request) -> Result<Response, Fault> {
        let head = self.send(request).await?;
        let mut sink = Sink::keep();
        let trailers = self.body(&head, &mut sink).await?;
        let Sink::Keep(body, _) = sink else {
            unreachable!("it was made above");
        };
        Ok(Response {
            head,
            body,
            trailers,
        })
    }

    /// Sends these bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(bytes).await.map_err(Fault::Broken)
    }

    /// Sends requests without a body in one piece, as a pipelining client does. The caller reads
    /// the responses one after the other, with [`head`](Self::head) and [`body`](Self::body).
    pub async fn pipeline(&mut self, requests: &[Request]) -> Result<(), Fault> {
        let heads: Vec<u8> = requests
            .iter()
            .flat_map(|request| request.head(&self.host))
            .collect();
        self.requests += requests.len() as u64;
        self.write(&heads).await
    }

    /// Sends a request, and reads the head of the response, even if the server responds before the
    /// body was sent completely.
    pub async fn send(&mut self, request: &Request) -> Result<Head, Fault> {
        self.requests += 1;
        self.at = "request";
        let head = request.head(&self.host);
        if matches!(request.body, RequestBody::None) {
            self.write(&head).await?;
            return self.head(request.method).await;
        }
        let outcome = {
            let (mut reader, mut writer) = self.stream.split();
            let mut first = vec![0; 4096];
            tokio::select! {
                written = async {
                    writer.write_all(&head).await?;
                    write_body(&mut writer, &request.body).await
                } => Outcome::Written(written),
                read = reader.read(&mut first) => Outcome::Early(read.map(|length| {
                    first.truncate(length);
                    first
                })),
            }
        };
        match outcome {
            // The server does not read the rest of the body, so this connection can carry no other
            // request.
            Outcome::Early(first) => {
                let first = first.map_err(Fault::Broken)?;
                if first.is_empty() {
                    return Err(Fault::Closed);
                }
                self.arrived.extend_from_slice(&first);
                self.head(request.method).await
            }
            Outcome::Written(Ok(())) => self.head(request.method).await,
            Outcome::Written(Err(error)) => match self.head(request.method).await {
                Err(Fault::Closed | Fault::Broken(_)) => Err(Fault::Broken(error)),
                response => response,
            },
        }
    }

    /// Reads the head of the next response; `method` is the method of its request.
    pub async fn head(&mut self, method: &str) -> Result<Head, Fault> {
        self.at = "response";
        let mut continued = false;
        loop {
            if let Some(mut head) = self.take_head(method)? {
                match head.status {
                    100 => continued = true,
                    101..200 => return Err(Fault::Wrong(format!("status {}", head.status))),
                    _ => {
                        head.continued = continued;
                        return Ok(head);
                    }
                }
                continue;
            }
            let begun = !self.arrived.is_empty();
            match self.read().await {
                Ok(()) => {}
                Err(Fault::CutOff(_)) if !begun => return Err(Fault::Closed),
                Err(Fault::Broken(error)) if begun => {
                    return Err(Fault::CutOff(format!("in the head: {error}")));
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Waits for `100 Continue`; anything else is a fault.
    pub async fn continued(&mut self) -> Result<(), Fault> {
        self.at = "100 Continue";
        loop {
            if let Some(head) = self.take_head("POST")? {
                return match head.status {
                    100 => Ok(()),
                    status => Err(Fault::Wrong(format!("status {status}, not 100"))),
                };
            }
            self.read().await?;
        }
    }

    /// Reads the body that follows a head, to its end, and returns its trailers.
    pub async fn body(
        &mut self,
        head: &Head,
        sink: &mut Sink,
    ) -> Result<Vec<(String, String)>, Fault> {
        self.at = "body";
        let mut trailers = Vec::new();
        let result = match head.framing {
            Framing::Length(length) => self.sized(length, sink).await,
            Framing::Chunked => self.chunked(sink).await.map(|found| trailers = found),
        };
        result.map_err(|fault| match fault {
            Fault::Broken(error) => Fault::CutOff(error.to_string()),
            fault => fault,
        })?;
        Ok(trailers)
    }

    /// Waits until the server closes the connection properly, without further bytes.
    pub async fn closed(&mut self) -> Result<(), Fault> {
        self.at = "close";
        if self.arrived.is_empty() {
            match self.read().await {
                Err(Fault::CutOff(_)) => return Ok(()),
                Err(fault) => return Err(fault),
                Ok(()) => {}
            }
        }
        let count = self.arrived.len();
        Err(Fault::Wrong(format!(
            "{count} bytes after the last response"
        )))
    }

    async fn sized(&mut self, length: u64, sink: &mut Sink) -> Result<(), Fault> {
        let mut left = length;
        loop {
            let size = usize::try_from(left)
                .map_or(self.arrived.len(), |left| left.min(self.arrived.len()));
            sink.take(&self.arrived[..size])?;
            self.arrived.drain(..size);
            left -= size as u64;
            if left == 0 {
                return Ok(());
            }
            self.read().await.map_err(|fault| match fault {
                Fault::CutOff(why) => {
                    Fault::CutOff(format!("{why} after {} of {length} bytes", length - left))
                }
                fault => fault,
            })?;
        }
    }

    async fn chunked(&mut self, sink: &mut Sink) -> Result<Vec<(String, String)>, Fault> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16)
                .map_err(|_| Fault::Malformed(format!("chunk size {line:?}")))?;
            if size == 0 {
                break;
            }
            self.sized(size, sink).await?;
            let end = self.line().await?;
            if !end.is_empty() {
                return Err(Fault::Malformed(format!("{end:?} after a chunk")));
            }
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| Fault::Malformed(format!("trailer {line:?}")))?;
            trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn line(&mut self) -> Result<String, Fault> {
        loop {
            if let Some(end) = self.arrived.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.arrived[..end]).into_owned();
                self.arrived.drain(..end + 2);
                return Ok(line);
            }
            if self.arrived.len() > LONGEST_HEAD {
                return Err(Fault::Malformed("a line without an end".to_owned()));
            }
            self.read().await?;
        }
    }

    fn take_head(&mut self, method: &str) -> Result<Option<Head>, Fault> {
        let mut space = [httparse::EMPTY_HEADER; 100];
        let mut parsed = httparse::Response::new(&mut space);
        let malformed = |why: &str| Fault::Malformed(why.to_owned());
        let length = match parsed.parse(&self.arrived) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if self.arrived.len() > LONGEST_HEAD => {
                return Err(malformed("the head has no end"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(malformed(&error.to_string())),
        };
        let mut head = Head {
            status: parsed.code.unwrap_or_default(),
            headers: parsed
                .headers
                .iter()
                .map(|header| {
                    (
                        header.name.to_ascii_lowercase(),
                        String::from_utf8_lossy(header.value).into_owned(),
                    )
                })
                .collect(),
            continued: false,
            framing: Framing::Length(0),
        };
        if method != "HEAD" && head.status >= 200 && !matches!(head.status, 204 | 304) {
            head.framing = match (
                head.header("content-length"),
                head.header("transfer-encoding"),
            ) {
                (Some(length), None) => Framing::Length(
                    length
                        .parse()
                        .map_err(|_| malformed("content-length is no number"))?,
                ),
                (None, Some("chunked")) => Framing::Chunked,
                _ => return Err(malformed("the body is not framed, or twice")),
            };
        }
        self.arrived.drain(..length);
        Ok(Some(head))
    }

    /// Reads more bytes. The end of the stream is [`Fault::CutOff`], an error is [`Fault::Broken`].
    async fn read(&mut self) -> Result<(), Fault> {
        let before = self.arrived.len();
        self.arrived.reserve(PIECE);
        match self.stream.read_buf(&mut self.arrived).await {
            Ok(0) => Err(Fault::CutOff("connection closed".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => {
                debug_assert_eq!(self.arrived.len(), before);
                Err(Fault::Broken(error))
            }
        }
    }
}

async fn write_body(
    writer: &mut tokio::net::tcp::WriteHalf<'_>,
    body: &RequestBody,
) -> io::Result<()> {
    match body {
        RequestBody::None => Ok(()),
        RequestBody::Pattern(pattern, length) => {
            let mut piece = vec![0; PIECE];
            let mut offset = 0;
            while offset < *length {
                let size = (length - offset).min(PIECE as u64);
                let piece =
                    &mut piece[..usize::try_from(size).map_err(|_| ErrorKind::InvalidInput)?];
                pattern.fill(offset, piece);
                writer.write_all(piece).await?;
                offset += size;
            }
            Ok(())
        }
        RequestBody::Chunks(chunks) => {
            for chunk in chunks {
                let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
                framed.extend_from_slice(chunk);
                framed.extend_from_slice(b"\r\n");
                writer.write_all(&framed).await?;
            }
            writer.write_all(b"0\r\n\r\n").await
        }
    }
}
