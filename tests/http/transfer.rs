//! Bodies of all sizes through the worker, with hyper on both sides and every byte compared.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use smoothserve::ipc::{
    Address, EndpointId, EndpointState, HealthCheck, Probe, Protocol, WireEndpoint,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::kit;

type Body = BoxBody<Bytes, Infallible>;

/// Returns pseudo-random bytes, in which no part can be taken for another.
fn pattern(length: usize) -> Bytes {
    let mut state = length as u64 ^ 0x9E37_79B9_7F4A_7C15;
    let mut bytes = vec![0; length];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes.into()
}

/// Makes a body with a length, or a chunked one with a trailer.
fn body(length: usize, chunked: bool) -> Body {
    let bytes = pattern(length);
    if !chunked {
        return Full::new(bytes).boxed();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-length", length.into());
    let mut rest = bytes;
    let mut size = 1;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        frames.push(rest.split_to(size.min(rest.len())));
        // Chunk sizes go from single bytes to more than any buffer holds.
        size = if size > 400_000 { 1 } else { size * 3 };
    }
    let frames = frames.into_iter().map(Frame::data);
    let frames = frames.chain([Frame::trailers(trailers)]);
    Frames(frames).boxed()
}

/// A body of frames that are all there from the start.
struct Frames<I>(I);

impl<I: Iterator<Item = Frame<Bytes>> + Unpin> hyper::body::Body for Frames<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

/// Answers `POST /<length of the request's body>/<length of the response's>/<chunked?>`.
async fn echo(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let parts: Vec<String> = request.uri().path().split('/').map(str::to_owned).collect();
    let sent: usize = parts[1].parse().unwrap();
    let wanted: usize = parts[2].parse().unwrap();
    let chunked = parts[3] == "chunked";
    let received = request.into_body().collect().await.unwrap();
    let trailer = received
        .trailers()
        .and_then(|trailers| trailers.get("x-length"));
    let trailer_is_right = !chunked || trailer.is_some_and(|value| value == &sent.to_string());
    let is_right = trailer_is_right && received.to_bytes() == pattern(sent);
    let response = Response::builder()
        .status(if is_right { 200 } else { 422 })
        .header("trailer", "x-length")
        .body(body(wanted, chunked));
    Ok(response.unwrap())
}

fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let connection = hyper::server::conn::http1::Builder::new();
    tokio::spawn(connection.serve_connection(TokioIo::new(stream), service_fn(echo)));
}

async fn tcp_instance() -> Address {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            serve(socket.accept().await.unwrap().0);
        }
    });
    Address::Tcp(address)
}

fn unix_instance(directory: &Path) -> Address {
    let path = directory.join("instance");
    let socket = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            serve(socket.accept().await.unwrap().0);
        }
    });
    Address::Unix(path)
}

#[tokio::test]
async fn bodies_of_all_sizes_pass_unchanged_in_both_directions() {
    transfer(tcp_instance().await, 20 << 20, &[]).await;
}

#[tokio::test]
async fn bodies_pass_unchanged_to_an_instance_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    // The second option is for systems that give users no root folder of their own.
    let path = directory.path().to_str().unwrap();
    let options = ["--instances", path, "--unix-sockets"];
    transfer(unix_instance(directory.path()), 2 << 20, &options).await;
}

async fn transfer(instance: Address, largest: usize, options: &[&str]) {
    let worker = kit::Worker::start_with(&[&["--threads", "2"], options].concat());
    let mut manager = worker.connect().await;
    let (socket, address) = kit::listen();
    manager.send_listener(1, &socket).await;
    let endpoint = WireEndpoint {
        id: EndpointId(1),
        address: instance,
        state: EndpointState::Active,
        protocol: Protocol::default(),
        probe: Probe::Connect,
        check: HealthCheck::Steady,
    };
    let services = vec![kit::service("shop", vec![endpoint])];
    let listeners = vec![kit::listener(1, address)];
    manager.apply(&kit::table(1, listeners, services)).await;

    let sizes = [
        0,
        1,
        100,
        8_191,
        16_383,
        16_384,
        65_536,
        131_073,
        1 << 20,
        largest,
    ];
    let mut clients = tokio::task::JoinSet::new();
    for chunked in [false, true] {
        clients.spawn(compare(address, sizes, chunked));
    }
    clients.join_all().await;
    let peak = peak_memory(worker.pid());
    assert!(
        peak < 64 << 20,
        "expected bodies to be streamed, but the worker held {peak} bytes at its peak"
    );
}

/// Sends and receives bodies of these sizes over one connection.
async fn compare(address: SocketAddr, sizes: [usize; 10], chunked: bool) {
    let stream = TcpStream::connect(address).await.unwrap();
    let connecting = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream));
    let (mut sender, connection) = connecting.await.unwrap();
    tokio::spawn(connection);
    let kind = if chunked { "chunked" } else { "length" };
    for (up, down) in pairs(&sizes) {
        let request = Request::post(format!("/{up}/{down}/{kind}"))
            .header("host", "a.example")
            .header("trailer", "x-length")
            .header("te", "trailers")
            .header("connection", "te")
            .body(body(up, chunked))
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "{up} {down} {kind}");
        let received = response.into_body().collect().await.unwrap();
        if chunked {
            let trailers = received.trailers().expect("the trailers are passed on");
            assert_eq!(trailers["x-length"], down.to_string());
        }
        assert!(received.to_bytes() == pattern(down), "{up} {down} {kind}");
    }
}

/// Pairs each size with each direction, large ones beside small ones.
fn pairs(sizes: &[usize]) -> Vec<(usize, usize)> {
    let reversed = sizes.iter().rev();
    let opposite = sizes.iter().zip(reversed).map(|(&up, &down)| (up, down));
    let equal = sizes.iter().map(|&size| (size, size));
    opposite.chain(equal).collect()
}

fn peak_memory(process: rustix::process::Pid) -> usize {
    let status = format!("/proc/{}/status", process.as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}
