//! A client and an instance that are plain sockets: the test chooses every byte that they send, and
//! sees every byte that they receive.

use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, prlimit};
use smoothserve::ipc::{
    EndpointState, Host, ListenerId, Route, WireEndpoint, WireService, WireTable,
};
use smoothserve_kit::{Bystander, Shop};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::kit::{
    Manager, PATIENCE, Worker, endpoint_at, first, listen, listener, route, service, table,
};

/// The most writable memory that a worker may have while it is attacked, in bytes.
const MOST_MEMORY: u64 = 256 << 20;

/// The number of the instance that bystanders ask.
pub(crate) const OF_BYSTANDERS: u64 = 1000;

/// A worker with one service for `a.example` and `*.any`, and the instances of that service.
pub(crate) struct Stage {
    worker: Worker,
    pub(crate) manager: Manager,
    pub(crate) table: WireTable,
    pub(crate) address: SocketAddr,
    pub(crate) instances: Vec<Instance>,
}

/// Returns the memory of a process that is not that of a file, in KiB. The program's own text is,
/// and what of it counts for one process depends on how many others run it.
pub(crate) fn memory_of(pid: rustix::process::Pid) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero()));
    let rollup = rollup.unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss_Anon:"));
    let figure = line.unwrap().trim().trim_end_matches(" kB");
    figure.parse().unwrap()
}

impl Stage {
    pub(crate) async fn new(instances: usize) -> Stage {
        Stage::trusting(instances, vec![]).await
    }

    pub(crate) async fn trusting(instances: usize, trusted_proxies: Vec<ipnet::IpNet>) -> Stage {
        let mut started = Vec::new();
        for _ in 0..instances {
            started.push(Instance::start().await);
        }
        // With one thread there is one pool of connections to the instances.
        let worker = Worker::start_with(&["--threads", "1"]);
        let mut manager = worker.connect().await;
        let (socket, address) = listen();
        manager.send_listener(1, &socket).await;
        let endpoints = started.iter().zip(1..);
        let endpoints = endpoints.map(|(instance, id)| instance.endpoint(id));
        let route = |host| Route {
            host,
            path: "/".to_owned(),
            strip: 0,
            listener: ListenerId(1),
        };
        let shop = WireService {
            routes: vec![
                route(Host::Exact("a.example".to_owned())),
                route(Host::Subdomain("any".to_owned())),
                route(Host::Exact(String::new())),
            ],
            ..service("shop", endpoints.collect())
        };
        let table = WireTable {
            trusted_proxies,
            ..table(1, vec![listener(1, address)], vec![shop])
        };
        manager.apply(&table).await;
        Stage {
            worker,
            manager,
            table,
            address,
            instances: started,
        }
    }

    /// Returns the private memory of the worker, in KiB.
    pub(crate) fn worker_memory(&self) -> u64 {
        memory_of(self.worker.pid())
    }

    /// Bounds the worker's memory, and begins to ask another service, with an instance of its own,
    /// which has to be served from now on.
    pub(crate) async fn besiege(&mut self) -> (Shop, Bystander) {
        limit_memory(&self.worker);
        let shop = Shop::start();
        let endpoint = endpoint_at(OF_BYSTANDERS, shop.address, EndpointState::Active);
        let service = of_host("bystander.example", vec![endpoint]);
        self.table.number += 1;
        self.table.services.push(service.into());
        self.manager.apply(&self.table).await;
        let mut bystander = Bystander::of_shop(self.address, "bystander.example");
        bystander.is_served().await;
        (shop, bystander)
    }

    /// Applies a table in which the service has these endpoints. Returns those that it had before.
    pub(crate) async fn set_endpoints(
        &mut self,
        endpoints: Vec<WireEndpoint>,
    ) -> Vec<WireEndpoint> {
        self.table.number += 1;
        let before = std::mem::replace(&mut first(&mut self.table).endpoints, endpoints);
        self.manager.apply(&self.table).await;
        before
    }

    /// Sets the state of all endpoints and applies the table.
    pub(crate) async fn set_state(&mut self, state: EndpointState) {
        self.table.number += 1;
        for endpoint in &mut first(&mut self.table).endpoints {
            endpoint.state = state;
        }
        self.manager.apply(&self.table).await;
    }

    pub(crate) async fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// Connects as a client and sends a request.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> Peer {
        let mut client = self.connect().await;
        client.send(request).await;
        client
    }

    /// Waits for the next connection on which the first instance receives bytes.
    pub(crate) async fn accept(&mut self) -> Peer {
        self.instances[0].accept().await
    }
}

/// Lets the worker have little writable memory of its own: without more, it aborts.
pub(crate) fn limit_memory(worker: &Worker) {
    let limit = Rlimit {
        current: Some(MOST_MEMORY),
        maximum: Some(MOST_MEMORY),
    };
    prlimit(Some(worker.pid()), Resource::Data, limit).unwrap();
}

/// Makes a service that gets the requests of the first listener for a host.
pub(crate) fn of_host(host: &str, endpoints: Vec<WireEndpoint>) -> WireService {
    WireService {
        routes: vec![Route {
            host: Host::Exact(host.to_owned()),
            ..route(1)
        }],
        ..service(host, endpoints)
    }
}

/// The listening socket of an instance, whose answers the test writes.
pub(crate) struct Instance {
    socket: TcpListener,
}

impl Instance {
    pub(crate) async fn start() -> Instance {
        Instance::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(crate) fn on(socket: TcpListener) -> Instance {
        Instance { socket }
    }

    pub(crate) fn endpoint(&self, id: u64) -> WireEndpoint {
        let address = self.socket.local_addr().unwrap();
        endpoint_at(id, address, EndpointState::Active)
    }

    /// Waits for the next connection on which bytes arrive, which skips health checks: these send
    /// nothing.
    pub(crate) async fn accept(&mut self) -> Peer {
        let accept = timeout(PATIENCE, self.accept_at_leisure()).await;
        accept.expect("a connection comes in time")
    }

    /// Does the same as [`Instance::accept`], without a limit of time.
    pub(crate) async fn accept_at_leisure(&mut self) -> Peer {
        loop {
            let (stream, _) = self.socket.accept().await.unwrap();
            let mut byte = [0];
            if matches!(stream.peek(&mut byte).await, Ok(1)) {
                return Peer::new(stream);
            }
        }
    }
}

/// One end of a connection, that of a client or of an instance.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Peer {
        Peer {
            stream,
            received: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let send = self.stream.write_all(bytes.as_ref());
        let sent = timeout(PATIENCE, send).await;
        sent.expect("the peer takes the bytes in time").unwrap();
    }

    /// Sends bytes to a peer that may have closed the connection.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let send = self.stream.write_all(bytes);
        timeout(PATIENCE, send)
            .await
            .expect("the peer takes the bytes in time")
    }

    /// Closes the sending side; a peer that is gone is no error.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Sends bytes and closes the sending side.
    pub(crate) async fn send_last(&mut self, bytes: impl AsRef<[u8]>) {
        self.send(bytes).await;
        self.stream.shutdown().await.unwrap();
    }

    /// Receives up to and including `end`, or everything if the connection ends before.
    pub(crate) async fn receive_until(&mut self, end: &str) -> String {
        let receive = async {
            loop {
                let found = find(&self.received, end.as_bytes());
                if let Some(at) = found {
                    let rest = self.received.split_off(at + end.len());
                    return text(std::mem::replace(&mut self.received, rest));
                }
                if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                    return text(std::mem::take(&mut self.received));
                }
            }
        };
        timeout(PATIENCE, receive)
            .await
            .expect("the bytes come in time")
    }

    /// Receives the next head. The id that the worker has made for the request is left out, because
    /// it is another one each time.
    pub(crate) async fn receive_head(&mut self) -> String {
        let head = self.receive_until("\r\n\r\n").await;
        let is_made = |line: &&str| line.strip_prefix("X-Request-Id: ").is_some_and(is_made_id);
        let lines = head.split_inclusive("\r\n");
        lines.filter(|line| !is_made(line)).collect()
    }

    /// Receives until the connection ends; the flag is true if it ended in order.
    pub(crate) async fn receive_all(&mut self) -> (String, bool) {
        let receive = async {
            loop {
                match self.stream.read_buf(&mut self.received).await {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        };
        let in_order = timeout(PATIENCE, receive)
            .await
            .expect("the connection ends in time");
        (text(std::mem::take(&mut self.received)), in_order)
    }

    /// Receives until the connection ends, which must happen in order.
    pub(crate) async fn receive_rest(&mut self) -> String {
        let (received, in_order) = self.receive_all().await;
        assert!(
            in_order,
            "expected an orderly end, got a reset after {received:?}"
        );
        received
    }

    /// Resets the connection, as a crash would.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

fn find(bytes: &[u8], end: &[u8]) -> Option<usize> {
    bytes.windows(end.len()).position(|window| window == end)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Returns true for an id that the worker makes for a request, with or without white space after
/// it.
pub(crate) fn is_made_id(text: &str) -> bool {
    let id = text.trim_end();
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Removes the line with the id of the request from the text of a response of smoothserve's own.
pub(crate) fn without_id(text: &str) -> String {
    let is_id = |line: &&str| line.strip_prefix("Request id: ").is_some_and(is_made_id);
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !is_id(line)).collect()
}

/// Removes the `Date` field, whose value changes from second to second.
pub(crate) fn undated(response: &str) -> String {
    let lines = response.split_inclusive("\r\n");
    lines.filter(|line| !line.starts_with("Date: ")).collect()
}

/// Returns the forwarding fields that the worker adds for this host.
pub(crate) fn forwarded(host: &str) -> String {
    format!("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: {host}\r\n")
}
