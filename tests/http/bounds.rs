//! What strangers can make grow: connections and requests, until a worker with few descriptors is
//! at its bounds. Meanwhile a well-behaved client of another service is served, and its instances
//! are probed.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::RecvFlags;
use rustix::process::{Signal, kill_process};
use smoothserve::ipc::EndpointState::{Active, Draining, Probing};
use smoothserve::ipc::{Address, BoundCounts, EndpointId, FromWorker, WireEndpoint, WireTable};
use smoothserve_kit::{Bystander, Shop};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::frames::{self, END_HEADERS, HEADERS, Outcome, block, frame};
use crate::kit::{
    Client, Instance, Manager, Worker, endpoint, endpoint_at, first, listen, listener, ok, service,
    table,
};
use crate::peers::{Peer, limit_memory, of_host, without_id};

/// How many descriptors the worker has.
const DESCRIPTORS: u32 = 512;

/// How many client connections a worker with two threads has of these, and how many connections to
/// instances.
const CLIENTS: usize = 129;
const TO_INSTANCES: usize = 258;

const GOOD: EndpointId = EndpointId(1);
pub(crate) const ATTACKED: EndpointId = EndpointId(2);

/// A worker with two services: `a.example`, whose client is well-behaved, and `attacked`, whose
/// instance takes everything and never answers.
struct Siege {
    worker: Worker,
    manager: Manager,
    table: WireTable,
    address: SocketAddr,
    /// The instance of `a.example`.
    good: Shop,
    sink: Sink,
    bystander: Bystander,
}

impl Siege {
    async fn new(threads: &str) -> Siege {
        allow_descriptors();
        let worker = start_limited(threads);
        limit_memory(&worker);
        let mut manager = worker.connect().await;
        let (socket, address) = listen();
        manager.send_listener(1, &socket).await;
        let (good, sink) = (Shop::start(), Sink::start().await);
        let mut attacked = of_host("attacked", vec![sink.endpoint()]);
        attacked.handling.queue_timeout = Duration::from_millis(200);
        let services = vec![
            of_host("a.example", vec![endpoint_at(GOOD.0, good.address, Active)]),
            attacked,
        ];
        let table = table(1, vec![listener(1, address)], services);
        manager.apply(&table).await;
        let mut bystander = Bystander::of_shop(address, "a.example");
        bystander.is_served().await;
        Siege {
            worker,
            manager,
            table,
            address,
            good,
            sink,
            bystander,
        }
    }

    /// Checks that the well-behaved client is served and that probes succeed, while the worker is
    /// at its bounds.
    async fn holds(&mut self) {
        self.bystander.is_served().await;
        let new = Shop::start();
        self.table.number += 1;
        let probed = endpoint_at(3, new.address, Probing);
        first(&mut self.table).endpoints.push(probed);
        self.manager.apply(&self.table).await;
        let endpoint = EndpointId(3);
        let result = Ok(());
        let ready = FromWorker::Probed { endpoint, result };
        // The probe may be faster than the last thread.
        if !self.manager.log.contains(&ready) {
            self.manager.wait_for_message(&ready).await;
        }
        let failed = |message: &&FromWorker| {
            matches!(
                message,
                FromWorker::Probed { result: Err(_), .. }
                    | FromWorker::Health { fault: Some(_), .. }
            )
        };
        let failed: Vec<_> = self.manager.log.iter().filter(failed).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let descriptors = self.descriptors();
        assert!(descriptors < DESCRIPTORS as usize, "{descriptors}");
        self.bystander.is_served().await;
        // With a rollout, nothing is lost either.
        self.table.number += 1;
        let endpoints = &mut first(&mut self.table).endpoints;
        endpoints[0].state = Draining;
        endpoints[1].state = Active;
        self.manager.apply(&self.table).await;
        let idle = FromWorker::Idle(GOOD);
        if !self.manager.log.contains(&idle) {
            self.manager.wait_for_message(&idle).await;
        }
        self.bystander.is_served().await;
        self.good = new;
    }

    /// Returns how many descriptors the worker has open.
    fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.worker.pid().as_raw_nonzero());
        std::fs::read_dir(path).unwrap().count()
    }
}

/// Starts a worker with this many threads that may open [`DESCRIPTORS`].
fn start_limited(threads: &str) -> Worker {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n \"$0\" && exec \"$@\""])
        .arg(DESCRIPTORS.to_string())
        .arg(env!("CARGO_BIN_EXE_smoothserve"));
    Worker::spawn(command, &["--threads", threads])
}

/// Waits for counts that show bounds as they are `wanted`.
pub(crate) async fn wait_for_bounds(manager: &mut Manager, wanted: impl Fn(&BoundCounts) -> bool) {
    let counts = |message: &FromWorker| match message {
        FromWorker::Counts { bounds, .. } => wanted(bounds).then_some(()),
        _ => None,
    };
    manager.wait_for(counts).await;
}

/// Lets this process open as many descriptors as it may.
pub(crate) fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
}

/// An instance that takes all connections and answers nothing.
pub(crate) struct Sink {
    address: SocketAddr,
    connections: Arc<AtomicU32>,
    _task: JoinSet<()>,
}

impl Sink {
    pub(crate) async fn start() -> Sink {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let count = connections.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut readers = JoinSet::new();
            loop {
                let (mut stream, _) = socket.accept().await.unwrap();
                let count = count.clone();
                readers.spawn(async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Sink {
            address,
            connections,
            _task: task,
        }
    }

    pub(crate) fn endpoint(&self) -> WireEndpoint {
        endpoint_at(ATTACKED.0, self.address, Active)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst) as usize
    }
}

pub(crate) async fn connect_from(
    client: [u8; 4],
    address: SocketAddr,
) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((client, 0).into()).unwrap();
    socket.connect(address).await
}

/// Returns true if the other side has closed the connection, without having sent anything.
fn has_ended(stream: &TcpStream) -> bool {
    match rustix::net::recv(stream, &mut [0_u8; 1], RecvFlags::empty()) {
        Ok((_, received)) => received == 0,
        Err(error) => error != rustix::io::Errno::AGAIN,
    }
}

/// Opens a connection with HTTP/2, and begins as many requests on it whose bodies never come.
async fn begin_posts(from: [u8; 4], address: SocketAddr, count: u32) -> frames::Client {
    let stream = connect_from(from, address).await.unwrap();
    let mut client = frames::Client::over(stream, &[]).await;
    let post = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "attacked"),
        ("content-length", "1000"),
    ]);
    for number in 0..count {
        let stream = 1 + 2 * number;
        let request = frame(HEADERS, END_HEADERS, stream, &post);
        assert!(client.send(&request).await);
    }
    client
}

/// As in the attack that was seen: 165 connections with 127 unfinished requests each, here in
/// proportion to the descriptors.
#[tokio::test]
async fn unfinished_requests_over_http2_starve_nobody_else() {
    let mut siege = Siege::new("2").await;
    let mut attackers = Vec::new();
    for number in 0..50 {
        // Five connections of each of ten clients.
        let from = [127, 0, 1, 1 + number / 5];
        attackers.push(begin_posts(from, siege.address, 127).await);
    }
    let refused = |refused| move |bounds: &BoundCounts| bounds.refused_requests >= refused;
    wait_for_bounds(&mut siege.manager, refused(50 * 127 - TO_INSTANCES as u64)).await;
    let held = siege.sink.connections();
    // Half of each thread's share, rounded up, and a probe.
    assert!((40..=TO_INSTANCES / 2 + 3).contains(&held), "{held}");
    siege.holds().await;
    drop(attackers);
    siege.bystander.end();
}

#[tokio::test]
async fn a_single_client_gets_a_third_of_the_room_for_requests() {
    let mut siege = Siege::new("1").await;
    let mut attacker = begin_posts([127, 0, 0, 2], siege.address, 127).await;
    wait_for_bounds(&mut siege.manager, |bounds| bounds.refused_requests > 0).await;
    siege.holds().await;
    let held = siege.sink.connections();
    assert!((80..=TO_INSTANCES / 3 + 2).contains(&held), "{held}");
    // What is over it was answered, with a status that the static table of HPACK does not have.
    let busy = "The service is not available at the moment.\n";
    match attacker.outcome(1 + 2 * 126).await {
        Outcome::Answer(0, text) => assert_eq!(without_id(&text), busy),
        other => panic!("{other:?}"),
    }
    // Another client of the same service is served meanwhile.
    let other = connect_from([127, 0, 0, 3], siege.address).await.unwrap();
    let mut other = Peer::new(other);
    other.send("GET / HTTP/1.1\r\nHost: attacked\r\n\r\n").await;
    siege
        .manager
        .wait_for_in_flight(ATTACKED, held as u32 + 1)
        .await;
    siege.bystander.end();
}

#[tokio::test]
async fn slow_uploads_over_http1_starve_nobody_else() {
    let mut siege = Siege::new("2").await;
    let mut attackers = Vec::new();
    for _ in 0..4 * CLIENTS {
        let stream = connect_from([127, 0, 0, 2], siege.address).await;
        let mut attacker = Peer::new(stream.unwrap());
        let head = "POST / HTTP/1.1\r\nHost: attacked\r\nContent-Length: 1000\r\n\r\nx";
        // Beyond its bound, the connection is closed.
        let _ = attacker.try_send(head.as_bytes()).await;
        attackers.push(attacker);
    }
    wait_for_bounds(&mut siege.manager, |bounds| bounds.refused_connections > 0).await;
    siege.holds().await;
    let held = siege.sink.connections();
    assert!((40..=CLIENTS / 2).contains(&held), "{held}");
    siege.bystander.end();
}

#[tokio::test]
async fn thousands_of_idle_connections_of_one_client_leave_room_for_others() {
    let mut siege = Siege::new("2").await;
    let mut idle = Vec::new();
    for _ in 0..4096 {
        idle.push(connect_from([127, 0, 0, 2], siege.address).await.unwrap());
    }
    wait_for_bounds(&mut siege.manager, |bounds| {
        bounds.refused_connections >= 4096 - CLIENTS as u64 / 2
    })
    .await;
    siege.holds().await;
    siege.bystander.end();
}

#[tokio::test]
async fn a_client_with_too_many_connections_is_told_so() {
    let siege = Siege::new("1").await;
    let mut idle = Vec::new();
    let response = loop {
        // The worker is held, so that the request is there when the connection is accepted. The
        // manager's listeners have TCP_DEFER_ACCEPT for that.
        kill_process(siege.worker.pid(), Signal::STOP).unwrap();
        let stream = connect_from([127, 0, 0, 2], siege.address).await.unwrap();
        let mut client = Peer::new(stream);
        client
            .send("GET /hello HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .await;
        kill_process(siege.worker.pid(), Signal::CONT).unwrap();
        let response = client.receive_head().await;
        if !response.starts_with("HTTP/1.1 200 ") {
            break response;
        }
        idle.push(client);
        assert!(idle.len() <= CLIENTS / 2 + 1);
    };
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("\r\nRetry-After: 1\r\n"), "{response}");
    assert!(response.contains("\r\nConnection: close\r\n"), "{response}");
    siege.bystander.end();
}

/// Many clients, each with few connections, take all connections that there are. These are idle, so
/// they give way to new ones.
#[tokio::test]
async fn idle_connections_give_way_to_new_ones() {
    let mut siege = Siege::new("2").await;
    let mut idle = Vec::new();
    for number in 0..CLIENTS + 20 {
        let from = [127, 0, 1, 1 + (number / 8) as u8];
        idle.push(connect_from(from, siege.address).await.unwrap());
    }
    wait_for_bounds(&mut siege.manager, |bounds| bounds.closed_idle >= 20).await;
    siege.holds().await;
    let ends = idle.into_iter().filter(has_ended).count();
    assert!(ends >= 20, "{ends}");
    siege.bystander.end();
}

/// A service with `max_in_flight: 1`, whose instance answers when the test says so.
struct Limited {
    _worker: Worker,
    manager: Manager,
    table: WireTable,
    address: SocketAddr,
    instance: Instance,
}

impl Limited {
    async fn new(queue_timeout: Duration) -> Limited {
        let worker = Worker::start();
        let mut manager = worker.connect().await;
        let (socket, address) = listen();
        manager.send_listener(1, &socket).await;
        let instance = Instance::start("one").await;
        let mut shop = service("shop", vec![endpoint(GOOD.0, &instance, Active)]);
        shop.handling.max_in_flight = Some(1);
        shop.handling.queue_timeout = queue_timeout;
        let table = table(1, vec![listener(1, address)], vec![shop]);
        manager.apply(&table).await;
        Limited {
            _worker: worker,
            manager,
            table,
            address,
            instance,
        }
    }

    /// Sends a request from this address, and waits until so many requests wait.
    async fn request(&mut self, from: u8, waiting: u32) -> Client {
        let mut client = Client::from([127, 0, 0, from], self.address).await;
        client.send("/wait").await;
        match waiting {
            0 => self.manager.wait_for_in_flight(GOOD, 1).await,
            _ => {
                let wanted = |bounds: &BoundCounts| bounds.waiting == waiting;
                wait_for_bounds(&mut self.manager, wanted).await;
            }
        }
        client
    }
}

#[tokio::test]
async fn requests_over_max_in_flight_wait_and_clients_take_turns() {
    let mut limited = Limited::new(crate::kit::PATIENCE).await;
    let mut greedy = Vec::new();
    for waiting in 0..4 {
        greedy.push(limited.request(2, waiting).await);
    }
    let mut modest = limited.request(3, 4).await;
    for client in &mut greedy[..2] {
        limited.instance.answer_one();
        assert_eq!(client.receive().await, ok("one"));
    }
    limited.instance.answer_one();
    assert_eq!(modest.receive().await, ok("one"), "it came last");
    // A rollout loses none of those that wait.
    let new = Instance::start("new").await;
    limited.manager.wait_for_in_flight(GOOD, 1).await;
    limited.table.number += 1;
    let endpoints = &mut first(&mut limited.table).endpoints;
    endpoints[0].state = Draining;
    endpoints.push(endpoint(2, &new, Active));
    limited.manager.apply(&limited.table).await;
    limited.instance.answer_one();
    assert_eq!(greedy[2].receive().await, ok("one"));
    limited
        .manager
        .wait_for_message(&FromWorker::Idle(GOOD))
        .await;
    new.answer_one();
    assert_eq!(greedy[3].receive().await, ok("new"));
}

#[tokio::test]
async fn a_request_over_max_in_flight_gets_503_after_queue_timeout() {
    let mut limited = Limited::new(Duration::from_millis(50)).await;
    let mut first = limited.request(2, 0).await;
    let stream = connect_from([127, 0, 0, 3], limited.address).await;
    let mut second = Peer::new(stream.unwrap());
    second
        .send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    let response = second.receive_head().await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("\r\nRetry-After: 1\r\n"), "{response}");
    wait_for_bounds(&mut limited.manager, |bounds| bounds.refused_requests == 1).await;
    limited.instance.answer_one();
    assert_eq!(first.receive().await, ok("one"));
    let mut third = Client::from([127, 0, 0, 3], limited.address).await;
    assert_eq!(third.get("/").await, ok("one"));
}

/// A request that has waited for others does not wait as long again for an instance.
#[tokio::test]
async fn a_request_waits_for_queue_timeout_only_once() {
    let limit = Duration::from_secs(3);
    let mut limited = Limited::new(limit).await;
    limited.table.number += 1;
    let endpoints = &mut first(&mut limited.table).endpoints;
    let (nobody_listens, address) = listen();
    drop(nobody_listens);
    endpoints[0].id = EndpointId(3);
    endpoints[0].address = Address::Tcp(address);
    limited.manager.apply(&limited.table).await;
    let begin = tokio::time::Instant::now();
    let mut peers = Vec::new();
    for from in [2, 3] {
        let stream = connect_from([127, 0, 0, from], limited.address).await;
        let mut peer = Peer::new(stream.unwrap());
        peer.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        peers.push(peer);
    }
    for peer in &mut peers {
        let response = peer.receive_head().await;
        assert!(response.starts_with("HTTP/1.1 50"), "{response}");
    }
    assert!(
        begin.elapsed() < limit * 2,
        "the second request waited for twice as long"
    );
}

#[tokio::test]
async fn without_max_in_flight_any_more_nobody_waits() {
    let mut limited = Limited::new(crate::kit::PATIENCE).await;
    let _first = limited.request(2, 0).await;
    let _second = limited.request(2, 1).await;
    limited.table.number += 1;
    first(&mut limited.table).handling.max_in_flight = None;
    limited.manager.apply(&limited.table).await;
    limited.manager.wait_for_in_flight(GOOD, 2).await;
}

/// If the system has no descriptor for another connection, the worker does not spin, and serves
/// those that it has.
#[tokio::test]
async fn a_worker_without_descriptors_waits_at_rest() {
    use rustix::process::{Resource, Rlimit, prlimit};
    let siege = Siege::new("1").await;
    let mut client = Client::from([127, 0, 0, 1], siege.address).await;
    assert_eq!(client.get("/hello").await, ok("hello\n"));
    siege.bystander.end();
    let pid = Some(siege.worker.pid());
    let few = Rlimit {
        current: Some(1),
        maximum: Some(u64::from(DESCRIPTORS)),
    };
    let before = prlimit(pid, Resource::Nofile, few).unwrap();
    let waiting = connect_from([127, 0, 0, 1], siege.address).await.unwrap();
    let used = || processor_ticks(siege.worker.pid().as_raw_nonzero().get());
    let begin = used();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A thread that spins would need all of this second, which is 100 ticks.
    let ticks = used() - begin;
    assert!(ticks < 30, "{ticks}");
    assert_eq!(
        client.get("/hello").await,
        ok("hello\n"),
        "an idle connection is at hand"
    );
    prlimit(pid, Resource::Nofile, before).unwrap();
    let mut waiting = Peer::new(waiting);
    waiting
        .send("GET /hello HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
        .await;
    let response = waiting.receive_rest().await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

/// Returns how much processor time a process has used, in ticks.
fn processor_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    [fields[11], fields[12]]
        .iter()
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}

/// Sends requests through a trusted proxy, which names this client in a PROXY header or names none,
/// each on a connection of its own, until one gets no answer or there are `most`. Returns the
/// connections.
async fn open_through_proxy(address: SocketAddr, client: Option<&str>, most: usize) -> Vec<Peer> {
    let header = client.map(|client| format!("PROXY TCP4 {client} 192.0.2.9 5000 80\r\n"));
    let request = header.unwrap_or_default() + "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let mut open = Vec::new();
    while open.len() < most {
        let mut peer = Peer::new(TcpStream::connect(address).await.unwrap());
        peer.send(&request).await;
        if !peer.receive_head().await.starts_with("HTTP/1.1 200 ") {
            break;
        }
        open.push(peer);
    }
    open
}

#[tokio::test]
async fn a_trusted_proxy_is_not_one_client_but_each_that_it_names_is() {
    allow_descriptors();
    for names in [true, false] {
        let worker = start_limited("1");
        let mut manager = worker.connect().await;
        let (socket, address) = listen();
        manager.send_listener(1, &socket).await;
        let instance = Instance::start("one").await;
        let shop = service("shop", vec![endpoint(GOOD.0, &instance, Active)]);
        let mut listener = listener(1, address);
        listener.proxy_protocol = names;
        let mut table = table(1, vec![listener], vec![shop]);
        table.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        manager.apply(&table).await;
        if !names {
            let all = open_through_proxy(address, None, CLIENTS - 9).await;
            assert_eq!(all.len(), CLIENTS - 9);
            continue;
        }
        let first = open_through_proxy(address, Some("192.0.2.1"), CLIENTS).await;
        assert!((60..=70).contains(&first.len()), "{}", first.len());
        let second = open_through_proxy(address, Some("192.0.2.2"), 10).await;
        assert_eq!(second.len(), 10);
        wait_for_bounds(&mut manager, |bounds| bounds.refused_connections == 1).await;
    }
}
