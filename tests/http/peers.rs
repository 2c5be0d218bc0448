//! A client and an instance that are no more than sockets: the test says every byte that they send, and sees every byte
//! that they receive.

use std::net::SocketAddr;

use smoothserve::ipc::{
    Address, Endpoint, EndpointId, EndpointState, Host, ListenerId, Probe, Protocol, Route,
    Service, Table,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::kit::{Manager, PATIENCE, Worker, first, listen, listener, service, table};

/// A worker with one service for `a.example` and `*.any`, and the instances of it.
pub(crate) struct Stage {
    worker: Worker,
    pub(crate) manager: Manager,
    pub(crate) table: Table,
    pub(crate) address: SocketAddr,
    pub(crate) instances: Vec<Instance>,
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
        // One thread, so that there is one pool of connections to the instances.
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
        let shop = Service {
            routes: vec![
                route(Host::Exact("a.example".to_owned())),
                route(Host::Subdomain("any".to_owned())),
                route(Host::Exact(String::new())),
            ],
            ..service("shop", endpoints.collect())
        };
        let table = Table {
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

    /// KiB that the worker has in memory for itself.
    pub(crate) fn worker_memory(&self) -> u64 {
        let pid = self.worker.pid();
        let rollup =
            std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero()));
        let rollup = rollup.unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let figure = line.unwrap().trim().trim_end_matches(" kB");
        figure.parse().unwrap()
    }

    /// Makes this the state of all instances.
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

    /// Connects and sends this.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> Peer {
        let mut client = self.connect().await;
        client.send(request).await;
        client
    }

    /// The next connection on which the first instance receives anything.
    pub(crate) async fn accept(&mut self) -> Peer {
        self.instances[0].accept().await
    }
}

/// A listening socket; the test plays the server.
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

    pub(crate) fn endpoint(&self, id: u64) -> Endpoint {
        Endpoint {
            id: EndpointId(id),
            address: Address::Tcp(self.socket.local_addr().unwrap()),
            state: EndpointState::Active,
            protocol: Protocol::default(),
            probe: Probe::Connect,
        }
    }

    /// The next connection on which anything comes: the health check's send nothing.
    pub(crate) async fn accept(&mut self) -> Peer {
        let accept = timeout(PATIENCE, self.accept_at_leisure()).await;
        accept.expect("a connection comes")
    }

    /// The same, whenever it may come.
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

/// One end of a connection.
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
        timeout(PATIENCE, send).await.expect("it is taken").unwrap();
    }

    /// Sends to somebody who may not want it.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let send = self.stream.write_all(bytes);
        timeout(PATIENCE, send).await.expect("it is taken")
    }

    /// Says that nothing will follow, if anybody is still there to hear it.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Sends, and says that nothing will follow.
    pub(crate) async fn send_last(&mut self, bytes: impl AsRef<[u8]>) {
        self.send(bytes).await;
        self.stream.shutdown().await.unwrap();
    }

    /// What comes, up to and with `end`; all that comes if `end` never does and the connection ends.
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
        timeout(PATIENCE, receive).await.expect("it comes")
    }

    /// The next head.
    pub(crate) async fn receive_head(&mut self) -> String {
        self.receive_until("\r\n\r\n").await
    }

    /// All until the connection ends, and whether it did so in order.
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
        let in_order = timeout(PATIENCE, receive).await.expect("it ends");
        (text(std::mem::take(&mut self.received)), in_order)
    }

    /// All until the end of a connection that ends in order.
    pub(crate) async fn receive_rest(&mut self) -> String {
        let (received, in_order) = self.receive_all().await;
        assert!(in_order, "reset after {received:?}");
        received
    }

    /// Closes the connection as a crash does.
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

/// Without the date, which is of the moment.
pub(crate) fn undated(response: &str) -> String {
    let lines = response.split_inclusive("\r\n");
    lines.filter(|line| !line.starts_with("Date: ")).collect()
}

/// What the instance gets added.
pub(crate) fn forwarded(host: &str) -> String {
    format!("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: {host}\r\n")
}
