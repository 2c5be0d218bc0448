//! A worker process, the manager's end of its control socket, instances, and clients.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smoothserve::ipc::{
    Address, Channel, EndpointId, EndpointState, FromWorker, Handling, HealthCheck, Host,
    ListenerId, MessageReceiver, MessageSender, Probe, Protocol, Route, ToWorker, WireEndpoint,
    WireListener, WireService, WireTable,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

/// The time after which a wait has failed: nothing takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A worker process, which is killed at the end of a test that does not wait for its end.
pub(crate) struct Worker {
    child: Child,
    directory: tempfile::TempDir,
}

impl Worker {
    pub(crate) fn start() -> Worker {
        Worker::start_with(&["--threads", "2"])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Worker {
        Worker::spawn(Command::new(env!("CARGO_BIN_EXE_smoothserve")), arguments)
    }

    /// Starts the program that `command` runs as a worker.
    pub(crate) fn spawn(mut command: Command, arguments: &[&str]) -> Worker {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(directory.path().join("control")).unwrap();
        let child = command
            .arg("proxy")
            .args(arguments)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)))
            .spawn()
            .unwrap();
        Worker { child, directory }
    }

    fn socket_path(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    /// Connects to the worker as a manager does, and takes its greeting.
    pub(crate) async fn connect(&self) -> Manager {
        let socket = UnixStream::connect(self.socket_path()).unwrap();
        let raw = socket.try_clone().unwrap();
        let (sender, receiver) = Channel::split(socket).unwrap();
        let mut manager = Manager {
            raw,
            sender,
            receiver,
            log: Vec::new(),
        };
        match manager.next().await {
            FromWorker::Hello { version, .. } => assert_eq!(&*version, env!("CARGO_PKG_VERSION")),
            message => panic!("{message:?}"),
        }
        manager
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub(crate) async fn exited(mut self) -> ExitStatus {
        let wait = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("the worker ends")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The manager's end of a control connection.
pub(crate) struct Manager {
    raw: UnixStream,
    sender: MessageSender<ToWorker>,
    receiver: MessageReceiver<FromWorker>,
    /// All received messages but `Counts`.
    pub(crate) log: Vec<FromWorker>,
}

impl Manager {
    pub(crate) async fn next(&mut self) -> FromWorker {
        let message = timeout(PATIENCE, self.receiver.receive()).await;
        let message = message
            .expect("the worker sends a message in time")
            .unwrap();
        let message = message.expect("the worker stays connected");
        if !matches!(message, FromWorker::Counts { .. }) {
            self.log.push(message.clone());
        }
        message
    }

    /// Waits for a message that `wanted` turns into a value.
    pub(crate) async fn wait_for<T>(&mut self, wanted: impl Fn(&FromWorker) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = wanted(&self.next().await) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, wait)
            .await
            .expect("the expected message comes in time")
    }

    pub(crate) async fn wait_for_message(&mut self, wanted: &FromWorker) {
        self.wait_for(|message| (message == wanted).then_some(()))
            .await;
    }

    pub(crate) async fn send(&mut self, message: ToWorker) {
        self.sender.send(&message, None).await.unwrap();
    }

    /// Sends a frame with this content, which is short.
    pub(crate) fn send_raw(&mut self, content: &str) {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        let frame = [&length, content.as_bytes()].concat();
        std::io::Write::write_all(&mut self.raw, &frame).unwrap();
    }

    pub(crate) async fn send_listener(&mut self, id: u32, socket: &std::net::TcpListener) {
        let message = ToWorker::Listener(ListenerId(id));
        let descriptor = Some(socket.as_fd());
        self.sender.send(&message, descriptor).await.unwrap();
    }

    /// Sends a table, and waits until all threads use it.
    pub(crate) async fn apply(&mut self, table: &WireTable) {
        self.send(ToWorker::Table(table.clone())).await;
        self.wait_for_message(&FromWorker::Acknowledged(table.number))
            .await;
    }

    /// Waits for counts that show this number of requests in flight on an endpoint.
    pub(crate) async fn wait_for_in_flight(&mut self, id: EndpointId, wanted: u32) {
        self.wait_for(|message| match message {
            FromWorker::Counts { endpoints, .. } => endpoints
                .iter()
                .any(|counts| counts.id == id && counts.in_flight == wanted)
                .then_some(()),
            _ => None,
        })
        .await;
    }

    /// Waits for counts that show this number of client connections.
    pub(crate) async fn wait_for_connections(&mut self, wanted: u32) {
        self.wait_for(|message| match message {
            FromWorker::Counts { connections, .. } => (*connections == wanted).then_some(()),
            _ => None,
        })
        .await;
    }
}

/// Makes a bound and listening socket, as the manager does.
pub(crate) fn listen() -> (std::net::TcpListener, SocketAddr) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // As many connections may wait to be accepted as for a listener of the manager.
    rustix::net::listen(&socket, 4096).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A small HTTP server that answers with its name. It answers `GET /wait` once the test allows it.
pub(crate) struct Instance {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    name: &'static str,
    connections: AtomicUsize,
    changed: Notify,
    /// One permit for each answer to `/wait`.
    go: Semaphore,
}

impl Instance {
    pub(crate) async fn start(name: &'static str) -> Instance {
        Instance::start_at(name, ([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn start_at(name: &'static str, address: SocketAddr) -> Instance {
        let socket = TcpListener::bind(address).await.unwrap();
        let address = socket.local_addr().unwrap();
        let state = Arc::new(State {
            name,
            connections: AtomicUsize::new(0),
            changed: Notify::new(),
            go: Semaphore::new(0),
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let state = shared.clone();
                state.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    let _ = answer(stream, &state).await;
                    state.connections.fetch_sub(1, Ordering::SeqCst);
                    state.changed.notify_waiters();
                });
            }
        });
        Instance {
            address,
            state,
            task,
        }
    }

    /// Allows the answer to one request for `/wait`.
    pub(crate) fn answer_one(&self) {
        self.state.go.add_permits(1);
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Ends the instance with all its connections.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn answer(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while !buffer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        if buffer.starts_with(b"GET /wait ") {
            state.go.acquire().await.unwrap().forget();
        }
        buffer.clear();
        let name = state.name;
        let length = name.len();
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
        stream.write_all(response.as_bytes()).await?;
    }
}

pub(crate) fn endpoint(id: u64, instance: &Instance, state: EndpointState) -> WireEndpoint {
    endpoint_at(id, instance.address, state)
}

pub(crate) fn endpoint_at(id: u64, address: SocketAddr, state: EndpointState) -> WireEndpoint {
    WireEndpoint {
        id: EndpointId(id),
        address: Address::Tcp(address),
        state,
        protocol: Protocol::default(),
        probe: Probe::Connect,
        check: HealthCheck::Steady,
    }
}

/// Makes a service that gets all requests of the first listener.
pub(crate) fn service(name: &str, endpoints: Vec<WireEndpoint>) -> WireService {
    WireService {
        name: name.to_owned(),
        running: true,
        handling: Handling::default(),
        routes: vec![route(1)],
        endpoints,
    }
}

/// Makes a service that gets no requests.
pub(crate) fn unrouted(name: &str, endpoints: Vec<WireEndpoint>) -> WireService {
    WireService {
        routes: Vec::new(),
        ..service(name, endpoints)
    }
}

/// Makes a route for all requests of a listener.
pub(crate) fn route(listener: u32) -> Route {
    Route {
        listener: ListenerId(listener),
        host: Host::Any,
        path: "/".to_owned(),
        strip: 0,
    }
}

pub(crate) fn listener(id: u32, address: SocketAddr) -> WireListener {
    WireListener {
        proxy_protocol: false,
        id: ListenerId(id),
        address,
        tls: None,
        passing: false,
    }
}

pub(crate) fn table(
    number: u64,
    listeners: Vec<WireListener>,
    services: Vec<WireService>,
) -> WireTable {
    WireTable {
        number,
        listeners,
        services: services.into_iter().map(Arc::new).collect(),
        ..WireTable::default()
    }
}

/// Returns the first service of a table, to be changed.
pub(crate) fn first(table: &mut WireTable) -> &mut WireService {
    Arc::make_mut(&mut table.services[0])
}

/// A client on a keep-alive connection.
pub(crate) struct Client {
    stream: TcpStream,
}

/// A response that a client has received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) closes: bool,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Client {
        Client::from([127, 0, 0, 1], address).await
    }

    /// Connects as a client that has this address.
    pub(crate) async fn from(client: [u8; 4], address: SocketAddr) -> Client {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((client, 0).into()).unwrap();
        let stream = socket.connect(address).await.unwrap();
        Client { stream }
    }

    pub(crate) async fn send(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> Response {
        let receive = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let byte = self.stream.read_u8().await;
                head.push(byte.expect("the connection gives a response"));
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let field = |name: &str| {
                let mut lines = head.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let length = field("content-length").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.unwrap();
            Response {
                status: head[9..12].parse().unwrap(),
                body: String::from_utf8(body).unwrap(),
                closes: field("connection") == Some("close"),
            }
        };
        timeout(PATIENCE, receive)
            .await
            .expect("a response comes in time")
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response {
        self.send(path).await;
        self.receive().await
    }

    /// Waits for the worker to close the connection.
    pub(crate) async fn closed(mut self) {
        let mut byte = [0];
        let read = timeout(PATIENCE, self.stream.read(&mut byte)).await;
        let read = read.expect("the connection is closed");
        assert!(
            matches!(read, Ok(0)),
            "expected an orderly end of the connection: {read:?}"
        );
    }
}

/// The successful response of the instance with this name.
pub(crate) fn ok(name: &str) -> Response {
    Response {
        status: 200,
        body: name.to_owned(),
        closes: false,
    }
}

/// The successful response of the instance with this name, after which the connection ends.
pub(crate) fn last(name: &str) -> Response {
    Response {
        closes: true,
        ..ok(name)
    }
}
