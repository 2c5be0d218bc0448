//! A small web service, realistic enough to run behind smoothserve: the demo and the end-to-end
//! tests use it.
//!
//! It listens where it is told: on the socket that it inherits (`LISTEN_FDS`), on the path in
//! `SOCKET`, or on the port of `-port=N` or `PORT`. It sends `READY=1` to `NOTIFY_SOCKET`, and on
//! SIGTERM it ends after finishing its requests. Its version stands in the last line of its own
//! file (see `smoothserve_kit::Build`), so that replacing the file deploys a new version.
//!
//! The build decides whether the service fails (it crashes at the start, never listens, never gets
//! healthy, or does not stay healthy). The environment decides about everything else:
//! `SHOP_START_DELAY=2s`, `SHOP_STOP=abrupt` (cuts off all connections on SIGTERM),
//! `SHOP_IDLE=300ms` (closes connections that were idle for this time, without a word),
//! `SHOP_KEEP_ALIVE=1` (announces `Keep-Alive: timeout=1`), `SHOP_CLOSE=yes` (serves one request
//! per connection).

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::env;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use listenfd::ListenFd;
use smoothserve_kit::{Build, Checksum, Pattern, Start};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run() -> anyhow::Result<()> {
    let build = Build::running()?.unwrap_or_else(|| Build::good("1"));
    let shop = Rc::new(Shop::from_environment(&build)?);
    let place = Place::from_environment()?;
    if build.start == Start::Crash {
        bail!(
            "version {} cannot open its database: no such table: orders",
            shop.version
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, async {
        let stop = signal(SignalKind::terminate())?;
        tokio::time::sleep(shop.start_delay).await;
        if build.start == Start::Mute {
            return std::future::pending().await;
        }
        shop.serve(place, stop).await
    });
    runtime.shutdown_background();
    result
}

/// The place on which the service listens.
enum Place {
    Inherited(ListenFd),
    Path(PathBuf),
    Port(u16),
}

impl Place {
    fn from_environment() -> anyhow::Result<Place> {
        let inherited = ListenFd::from_env();
        if inherited.len() > 0 {
            return Ok(Place::Inherited(inherited));
        }
        if let Some(path) = env::var_os("SOCKET") {
            return Ok(Place::Path(path.into()));
        }
        let argument =
            env::args().find_map(|argument| argument.strip_prefix("-port=").map(str::to_owned));
        let port = argument.or_else(|| env::var("PORT").ok());
        let port = port.as_deref().unwrap_or("3000");
        port.parse()
            .map(Place::Port)
            .with_context(|| format!("{port:?} is no port"))
    }

    async fn listen(self) -> anyhow::Result<Listener> {
        Ok(match self {
            Place::Inherited(mut inherited) => match inherited.take_tcp_listener(0) {
                Ok(listener) => {
                    let listener = listener.context("no socket was inherited")?;
                    listener.set_nonblocking(true)?;
                    Listener::Tcp(TcpListener::from_std(listener)?)
                }
                Err(_) => {
                    let listener = inherited
                        .take_unix_listener(0)?
                        .context("no socket was inherited")?;
                    listener.set_nonblocking(true)?;
                    Listener::Unix(UnixListener::from_std(listener)?)
                }
            },
            Place::Path(path) => Listener::Unix(
                UnixListener::bind(&path)
                    .with_context(|| format!("listen on {}", path.display()))?,
            ),
            Place::Port(port) => Listener::Tcp(
                TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                    .await
                    .with_context(|| format!("listen on port {port}"))?,
            ),
        })
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// What an instance knows about itself.
struct Shop {
    version: String,
    instance: String,
    /// How many more health checks succeed, if the service is or becomes sick.
    healthy_for: Option<Cell<u32>>,
    start_delay: Duration,
    stop_abruptly: bool,
    idle: Option<Duration>,
    one_request: bool,
    keep_alive: Option<HeaderValue>,
}

impl Shop {
    fn from_environment(build: &Build) -> anyhow::Result<Shop> {
        Ok(Shop {
            version: env::var("SHOP_VERSION").unwrap_or_else(|_| build.version.clone()),
            instance: env::var("SMOOTHSERVE_INSTANCE").unwrap_or_else(|_| "0".to_owned()),
            healthy_for: match build.start {
                Start::Sick => Some(Cell::new(0)),
                Start::Failing => Some(Cell::new(1)),
                _ => None,
            },
            start_delay: duration("SHOP_START_DELAY")?.unwrap_or_default(),
            stop_abruptly: env::var("SHOP_STOP").is_ok_and(|stop| stop == "abrupt"),
            idle: duration("SHOP_IDLE")?,
            one_request: env::var_os("SHOP_CLOSE").is_some(),
            keep_alive: match env::var("SHOP_KEEP_ALIVE") {
                Ok(seconds) => Some(HeaderValue::try_from(format!("timeout={seconds}"))?),
                Err(_) => None,
            },
        })
    }

    /// Returns true if this health check fails.
    fn is_sick(&self) -> bool {
        self.healthy_for.as_ref().is_some_and(|left| {
            let now = left.get();
            left.set(now.saturating_sub(1));
            now == 0
        })
    }

    async fn serve(self: Rc<Self>, place: Place, mut stop: Signal) -> anyhow::Result<()> {
        let listener = place.listen().await?;
        sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
        println!("shop {}: instance {} is ready", self.version, self.instance);
        let (stopping, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(stream) => {
                        connections.spawn_local(self.clone().connection(stream, stopped.clone()));
                    }
                    Err(error) => eprintln!("shop: accept: {error}"),
                },
                _ = stop.recv() => break,
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        if !self.stop_abruptly {
            stopping.send_replace(true);
            while connections.join_next().await.is_some() {}
        }
        println!("shop {}: instance {} ends", self.version, self.instance);
        Ok(())
    }

    async fn connection(
        self: Rc<Self>,
        stream: Box<dyn Stream>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let shop = self.clone();
        let service = service_fn(move |request| shop.clone().answer(request));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .half_close(true)
            .keep_alive(!self.one_request);
        // hyper waits this long for the head of the next request, so this is also the limit for
        // idle connections.
        http.header_read_timeout(self.idle.unwrap_or(Duration::from_secs(75)));
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
        // A broken connection concerns only its client.
        let _ = tokio::select! {
            result = connection.as_mut() => result,
            _ = stopped.wait_for(|stop| *stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
    }

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let name = request.headers().get("x-load-name").cloned();
        let mut response = self.route(request).await.unwrap_or_else(|error| {
            let mut response = Response::new(Answer::text(format!("{error:#}\n")));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        });
        let headers = response.headers_mut();
        headers.insert("x-shop-version", header(&self.version));
        headers.insert("x-shop-instance", header(&self.instance));
        if let Some(keep_alive) = &self.keep_alive {
            headers.insert("keep-alive", keep_alive.clone());
        }
        if let Some(name) = name {
            headers.insert("x-load-name", name);
        }
        Ok(response)
    }

    async fn route(&self, request: Request<Incoming>) -> anyhow::Result<Response<Answer>> {
        let query = Query(request.uri().query().unwrap_or_default().to_owned());
        let mut response = Response::new(Answer::text(""));
        *response.body_mut() = match request.uri().path() {
            "/" => {
                response.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("text/html; charset=utf-8"),
                );
                Answer::text(self.page())
            }
            "/hello" => Answer::text("hello\n"),
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(query.number("ms", 1000)?)).await;
                Answer::text("slow\n")
            }
            "/download" => Answer::Download {
                pattern: Pattern::new(query.number("seed", 1)?),
                offset: 0,
                length: query.number("bytes", 1 << 20)?,
            },
            "/upload" => {
                let mut body = request.into_body();
                let mut checksum = Checksum::default();
                while let Some(frame) = body.frame().await {
                    if let Some(bytes) = frame?.data_ref() {
                        checksum.update(bytes);
                    }
                }
                Answer::text(format!("{checksum}\n"))
            }
            "/echo" => {
                if let Some(kind) = request.headers().get(CONTENT_TYPE) {
                    response.headers_mut().insert(CONTENT_TYPE, kind.clone());
                }
                Answer::Echo(request.into_body())
            }
            "/headers" => Answer::text(seen(&request)),
            "/trailers" => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-pieces", HeaderValue::from_static("3"));
                response
                    .headers_mut()
                    .insert("trailer", HeaderValue::from_static("x-pieces"));
                let pieces =
                    ["one\n", "two\n", "three\n"].map(|piece| Frame::data(Bytes::from(piece)));
                Answer::Pieces(
                    pieces
                        .into_iter()
                        .chain([Frame::trailers(trailers)])
                        .collect(),
                )
            }
            "/refuse" => {
                *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                Answer::text("too large\n")
            }
            "/health" if self.is_sick() => {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                Answer::text("the database is gone\n")
            }
            "/health" => Answer::text("well\n"),
            "/crash" => std::process::abort(),
            "/stall" => std::future::pending().await,
            _ => {
                *response.status_mut() = StatusCode::NOT_FOUND;
                Answer::text("the shop has no such page\n")
            }
        };
        Ok(response)
    }

    fn page(&self) -> String {
        format!(
            "<!doctype html><title>shop</title>\n\
             <h1>The shop, version {}</h1>\n\
             <p>Served by instance {} (process {}).</p>\n\
             <p>Try <a href=/slow?ms=3000>a slow page</a>, <a href=/download?bytes=20000000>a download</a>,\n\
             <a href=/headers>what the service sees</a>.</p>\n",
            self.version,
            self.instance,
            std::process::id()
        )
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("?"))
}

/// Returns the request as text, as it arrived.
fn seen(request: &Request<Incoming>) -> String {
    let mut text = format!(
        "{} {} {:?}\n",
        request.method(),
        request.uri(),
        request.version()
    );
    for (name, value) in request.headers() {
        text.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    text
}

/// Parses a variable such as `500ms`, `2s` or plain seconds.
fn duration(variable: &str) -> anyhow::Result<Option<Duration>> {
    let Ok(text) = env::var(variable) else {
        return Ok(None);
    };
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text.as_str(), 1.0),
    };
    let seconds: f64 = number
        .parse()
        .with_context(|| format!("{variable}={text} is no duration"))?;
    Ok(Some(Duration::try_from_secs_f64(seconds * unit)?))
}

struct Query(String);

impl Query {
    fn number(&self, name: &str, default: u64) -> anyhow::Result<u64> {
        let found = self
            .0
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        match found {
            None => Ok(default),
            Some(text) => text
                .parse()
                .with_context(|| format!("{name}={text} is no number")),
        }
    }
}

/// The body of a response.
enum Answer {
    Whole(Option<Bytes>),
    Download {
        pattern: Pattern,
        offset: u64,
        length: u64,
    },
    Echo(Incoming),
    Pieces(VecDeque<Frame<Bytes>>),
}

impl Answer {
    fn text(text: impl Into<String>) -> Answer {
        Answer::Whole(Some(Bytes::from(text.into())))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = anyhow::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, anyhow::Error>>> {
        const PIECE: u64 = 64 << 10;
        match self.get_mut() {
            Answer::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Download { offset, length, .. } if offset == length => Poll::Ready(None),
            Answer::Download {
                pattern,
                offset,
                length,
            } => {
                let size = PIECE.min(*length - *offset);
                let mut piece = vec![0; size as usize];
                pattern.fill(*offset, &mut piece);
                *offset += size;
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
            Answer::Echo(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Answer::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Whole(bytes) => bytes.is_none(),
            Answer::Download { offset, length, .. } => offset == length,
            Answer::Echo(body) => body.is_end_stream(),
            Answer::Pieces(pieces) => pieces.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Answer::Download { offset, length, .. } => SizeHint::with_exact(length - offset),
            Answer::Echo(body) => body.size_hint(),
            Answer::Pieces(_) => SizeHint::default(),
        }
    }
}
