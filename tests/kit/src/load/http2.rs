//! Connections of a load that speak HTTP/2, without TLS.
//!
//! Each connection carries several requests at a time. A request is lost as over HTTP/1.1, with one
//! exception that the standard makes (RFC 9113, section 6.8): a server that closes a connection
//! says which requests it has not begun, and the client sends those again on another connection.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::Uri;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{Kind, Maker, Order, Right, Shared};
use crate::client::{Fault, RequestBody};
use crate::{Comparison, Pattern};

/// How many requests a connection carries at a time.
const STREAMS: usize = 4;

/// How many bytes of a body are sent at a time.
const PIECE: u64 = 64 << 10;

/// The task of one connection of the load.
pub(super) struct Http2Client {
    shared: Arc<Shared>,
    maker: Maker,
    connection: Option<Open>,
}

/// An open connection, which is dropped with the task that reads it.
struct Open {
    requests: SendRequest<Bytes>,
    reader: AbortHandle,
    used: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Why a request has no right response.
enum Failure {
    /// The server has not begun it.
    NotBegun,
    Lost(Fault),
}

impl Http2Client {
    pub(super) fn new(number: usize, shared: Arc<Shared>) -> Http2Client {
        Http2Client {
            maker: Maker::new(number),
            shared,
            connection: None,
        }
    }

    pub(super) async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let options = &self.shared.options;
            sleep(self.maker.pause(options)).await;
            let kind = self.maker.pick(options);
            let count = if kind == Kind::Fresh { 1 } else { STREAMS };
            let orders: Vec<Order> = (0..count)
                .map(|_| self.maker.order(options, kind))
                .collect();
            let kept = match kind {
                Kind::Fresh => None,
                _ => self.connection.take(),
            };
            let in_flight = &self.shared.in_flight;
            in_flight.fetch_add(count as u64, Ordering::Relaxed);
            let kept = self.answered(orders, kept).await;
            let in_flight = &self.shared.in_flight;
            in_flight.fetch_sub(count as u64, Ordering::Relaxed);
            if kind != Kind::Fresh {
                self.connection = kept;
            }
        }
    }

    /// Sends requests on a connection, and returns the connection if others may follow.
    async fn answered(&self, orders: Vec<Order>, mut kept: Option<Open>) -> Option<Open> {
        let mut unsent = orders;
        while !unsent.is_empty() {
            let phase = self.shared.report().phase();
            let started = Instant::now();
            let mut open = match self.open(kept.take()).await {
                Ok(open) => open,
                Err(fault) => {
                    for order in &unsent {
                        self.shared.lose(phase, order, started, false, &fault);
                    }
                    return None;
                }
            };
            let reused = std::mem::replace(&mut open.used, true);
            let mut exchanges = JoinSet::new();
            for order in unsent.drain(..) {
                let requests = open.requests.clone();
                let shared = self.shared.clone();
                exchanges.spawn(async move {
                    let limit = shared.options.limit;
                    let late = Fault::TimedOut(limit, "response");
                    let exchange = exchange(requests, &order, &shared.options.host);
                    let result = timeout(limit, exchange).await;
                    (order, result.unwrap_or(Err(Failure::Lost(late))))
                });
            }
            let mut goes_on = true;
            while let Some(ended) = exchanges.join_next().await {
                let (order, result) = ended.expect("a request of the load does not panic");
                match result {
                    Ok(version) => {
                        let took = started.elapsed();
                        self.shared
                            .report()
                            .count(phase, order.kind, took, &version);
                    }
                    Err(Failure::NotBegun) => {
                        self.shared.report().reopened += 1;
                        unsent.push(order);
                        goes_on = false;
                    }
                    Err(Failure::Lost(fault)) => {
                        self.shared.lose(phase, &order, started, reused, &fault);
                        goes_on = false;
                    }
                }
            }
            if goes_on {
                return Some(open);
            }
        }
        None
    }

    async fn open(&self, kept: Option<Open>) -> Result<Open, Fault> {
        if let Some(mut open) = kept {
            let is_ready = poll_fn(|context| open.requests.poll_ready(context)).await;
            match is_ready.map_err(failure) {
                Ok(()) => return Ok(open),
                Err(Failure::NotBegun) => self.shared.report().reopened += 1,
                Err(Failure::Lost(fault)) => return Err(fault),
            }
        }
        let options = &self.shared.options;
        let connect = async {
            let stream = TcpStream::connect(options.address).await?;
            stream.set_nodelay(true)?;
            let (requests, connection) = h2::client::handshake(stream).await.map_err(to_io)?;
            Ok((requests, connection))
        };
        let limit = options.limit;
        let connected = timeout(limit, connect).await;
        let connected = connected.map_err(|_| Fault::TimedOut(limit, "connection"))?;
        let (requests, connection) = connected.map_err(Fault::Connect)?;
        // What ends the connection ends its requests, which report it.
        let reader = tokio::spawn(async move { drop(connection.await) });
        Ok(Open {
            requests,
            reader: reader.abort_handle(),
            used: false,
        })
    }
}

fn to_io(error: h2::Error) -> std::io::Error {
    std::io::Error::other(error)
}

/// Returns what an error means for a request that was sent, or could not be.
fn failure(error: h2::Error) -> Failure {
    let is_not_begun = error.is_remote()
        && match error.reason() {
            Some(Reason::REFUSED_STREAM) => error.is_reset(),
            // Streams that the server may have begun do not end with its goodbye.
            Some(Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        };
    match is_not_begun {
        true => Failure::NotBegun,
        false => Failure::Lost(Fault::Broken(to_io(error))),
    }
}

/// Sends a request, and checks every byte of its response. Returns the version of the service.
async fn exchange(
    requests: SendRequest<Bytes>,
    order: &Order,
    host: &str,
) -> Result<String, Failure> {
    let mut requests = requests.ready().await.map_err(failure)?;
    let uri = Uri::builder()
        .scheme("http")
        .authority(host)
        .path_and_query(order.request.target())
        .build()
        .expect("the targets of a load are right");
    let request = http::Request::builder()
        .method(order.request.method())
        .uri(uri)
        .header("x-load-name", &order.name)
        .body(())
        .expect("the requests of a load are right");
    let body = match order.request.body() {
        RequestBody::Pattern(pattern, length) => Some((*pattern, *length)),
        _ => None,
    };
    let sent = requests.send_request(request, body.is_none());
    let (response, stream) = sent.map_err(failure)?;
    let (sent, response) = tokio::join!(upload(stream, body), response);
    let (head, body) = response.map_err(failure)?.into_parts();
    sent.map_err(failure)?;
    let header = |name: &str| {
        let value = head.headers.get(name);
        let value = value.and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    check(order, head.status.as_u16(), &header("x-load-name"), body).await?;
    Ok(header("x-shop-version"))
}

async fn upload(
    mut stream: SendStream<Bytes>,
    body: Option<(Pattern, u64)>,
) -> Result<(), h2::Error> {
    let Some((pattern, length)) = body else {
        return Ok(());
    };
    let mut offset = 0;
    while offset < length {
        stream.reserve_capacity(PIECE.min(length - offset) as usize);
        let Some(room) = poll_fn(|context| stream.poll_capacity(context)).await else {
            // The response says why.
            return Ok(());
        };
        let mut piece = vec![0; room?];
        pattern.fill(offset, &mut piece);
        offset += piece.len() as u64;
        stream.send_data(piece.into(), offset == length)?;
    }
    Ok(())
}

async fn check(
    order: &Order,
    status: u16,
    name: &str,
    mut body: RecvStream,
) -> Result<(), Failure> {
    let wrong = |what: String| Err(Failure::Lost(Fault::Wrong(what)));
    let mut comparison = match &order.right {
        Right::Pattern(pattern, _) if status == 200 => Some(Comparison::new(*pattern)),
        _ => None,
    };
    let mut text = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(failure)?;
        match &mut comparison {
            Some(comparison) => {
                if let Err(offset) = comparison.update(&piece) {
                    return wrong(format!("byte {offset} of the body differs"));
                }
            }
            None => text.extend_from_slice(&piece),
        }
        // Fails only if the stream is gone, and then the next piece says so.
        let _ = body.flow_control().release_capacity(piece.len());
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    if status != 200 {
        return Err(Failure::Lost(Fault::Status { status, body: text }));
    }
    if name != order.name {
        return wrong(format!(
            "the response to request {name}, not to {}",
            order.name
        ));
    }
    match (&order.right, comparison) {
        (Right::Text(right), _) if text != *right => wrong(format!("{text:?}, not {right:?}")),
        (Right::Pattern(_, length), Some(comparison)) if comparison.length() != *length => {
            wrong(format!("{} of {length} bytes", comparison.length()))
        }
        _ => Ok(()),
    }
}
