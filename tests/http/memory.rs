//! What strangers can make a worker hold in memory: heads that are large when they are decoded,
//! heads that are large as they come, and responses that nobody reads.
//!
//! The worker has a budget, and beyond that a hard limit of the system, with which it would die if
//! the budget did not hold. Meanwhile well-behaved clients of another service are served: all their
//! requests succeed, over kept connections, over new ones and over HTTP/2.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use smoothserve::ipc::EndpointState::Active;
use smoothserve::ipc::{BoundCounts, Overload, WireEndpoint};
use smoothserve_kit::{Bystander, Shop};
use tokio::task::JoinHandle;

use crate::bounds::{ATTACKED, Sink, allow_descriptors, connect_from, wait_for_bounds};
use crate::frames::{
    Client, END_HEADERS, HEADERS, INITIAL_WINDOW_SIZE, Outcome, WHOLE, WINDOW_UPDATE, block, frame,
    get,
};
use crate::kit::{Manager, Worker, endpoint_at, listen, listener, table};
use crate::peers::{self, OF_BYSTANDERS, Peer, of_host};
use crate::recorder::{BIG, Recorder};

/// How much memory the worker may use, in bytes.
const BUDGET: u64 = 32 << 20;

/// How much the worker may grow, in KiB: by its budget, by what comes before the next look at it,
/// and by what the allocator does not give back.
const MOST_GROWTH: u64 = (BUDGET >> 10) * 2;

/// How much address space the worker has, in KiB: enough for the reserve of the allocator, which is
/// not used, and far less than any of these attacks could make it use.
const ADDRESS_SPACE: u64 = 768 << 10;

/// How many streams the worker allows at the same time.
const STREAMS: u32 = 128;

const REFUSED_STREAM: u32 = 7;

/// A worker with a budget, and two services: `a.example`, whose clients are well-behaved, and
/// `attacked`.
struct Siege {
    worker: Worker,
    manager: Manager,
    address: SocketAddr,
    bystander: Bystander,
    /// The worker's memory before the attack, in KiB.
    before: u64,
    _shop: Shop,
}

impl Siege {
    async fn new(budget: u64, attacked: WireEndpoint) -> Siege {
        allow_descriptors();
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -v \"$0\" && exec \"$@\""])
            .arg(ADDRESS_SPACE.to_string())
            .arg(env!("CARGO_BIN_EXE_smoothserve"));
        let worker = Worker::spawn(command, &["--threads", "2"]);
        let mut manager = worker.connect().await;
        let (socket, address) = listen();
        manager.send_listener(1, &socket).await;
        let shop = Shop::start();
        let services = vec![
            of_host(
                "a.example",
                vec![endpoint_at(OF_BYSTANDERS, shop.address, Active)],
            ),
            of_host("attacked", vec![attacked]),
        ];
        let mut table = table(1, vec![listener(1, address)], services);
        table.max_memory = Some(budget);
        manager.apply(&table).await;
        let mut bystander = Bystander::of_shop(address, "a.example");
        bystander.is_served().await;
        let before = peers::memory_of(worker.pid());
        Siege {
            worker,
            manager,
            address,
            bystander,
            before,
            _shop: shop,
        }
    }

    /// Returns by how much the worker has grown, in KiB.
    fn growth(&self) -> u64 {
        peers::memory_of(self.worker.pid()).saturating_sub(self.before)
    }

    /// Opens connections of many clients and lets `act` do with each what it likes, until the
    /// worker has closed some of them because they hold most. Checks that the worker stays within
    /// its budget and serves others, and that the overload ends with the attack.
    async fn withstands<C>(mut self, act: impl AsyncFn(SocketAddr, [u8; 4]) -> C) {
        let mut multiplexed = Multiplexed::start(self.address);
        let mut attackers = Vec::new();
        let (address, pid, before) = (self.address, self.worker.pid(), self.before);
        let attack = async {
            for number in 0_u32.. {
                let [.., high, low] = number.to_be_bytes();
                attackers.push(act(address, [127, 2, high, low]).await);
                let growth = peers::memory_of(pid).saturating_sub(before);
                assert!(growth < MOST_GROWTH, "{growth} KiB, {number} attackers");
            }
        };
        let has_closed = wait_for_bounds(&mut self.manager, |bounds| bounds.closed_largest > 0);
        tokio::select! {
            () = attack => {}
            () = has_closed => {}
        }
        self.bystander.is_served().await;
        multiplexed.is_served().await;
        let growth = self.growth();
        assert!(growth < MOST_GROWTH, "{growth} KiB");
        drop(attackers);
        let is_over = |bounds: &BoundCounts| bounds.overload == Overload::None;
        wait_for_bounds(&mut self.manager, is_over).await;
        // What was refused is admitted again.
        act(address, [127, 0, 1, 1]).await;
        self.bystander.is_served().await;
        multiplexed.is_served().await;
        self.bystander.end();
        multiplexed.end().await;
    }
}

/// A well-behaved client with HTTP/2, which keeps its connection.
struct Multiplexed {
    task: JoinHandle<()>,
    answered: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
}

impl Multiplexed {
    fn start(address: SocketAddr) -> Multiplexed {
        let answered = Arc::<AtomicU32>::default();
        let stop = Arc::<AtomicBool>::default();
        let (counts, ends) = (answered.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let stream = connect_from([127, 1, 0, 3], address).await.unwrap();
            let mut client = Client::over(stream, &[]).await;
            // A connection on which a request waits for its body is not idle, however seldom this
            // task runs.
            let begun = frame(HEADERS, END_HEADERS, 1, &get("/"));
            assert!(client.send(&begun).await);
            let mut stream = 3;
            while !ends.load(Ordering::Relaxed) {
                let request = frame(HEADERS, WHOLE, stream, &get("/hello"));
                assert!(client.send(&request).await);
                let answer = Outcome::Answer(200, "hello\n".to_owned());
                assert_eq!(client.outcome(stream).await, answer);
                counts.fetch_add(1, Ordering::Relaxed);
                stream += 2;
            }
        });
        Multiplexed {
            task,
            answered,
            stop,
        }
    }

    /// Waits until the client has got some more answers.
    async fn is_served(&mut self) {
        let wanted = self.answered.load(Ordering::Relaxed) + 10;
        while self.answered.load(Ordering::Relaxed) < wanted {
            assert!(!self.task.is_finished(), "a request was not answered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets the client end, and checks that it has met no fault.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every request is answered");
    }
}

/// Returns the ids of as many streams as the worker allows.
fn streams() -> impl Iterator<Item = u32> {
    (0..STREAMS - 1).map(|number| 1 + 2 * number)
}

fn get_attacked(path: &str) -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "attacked"),
    ])
}

/// Opens a connection with requests whose heads are 30 KiB when they are decoded. Each of them but
/// the first needs less than 100 bytes, since it refers to a field in the table of HPACK.
async fn send_bombs(address: SocketAddr, from: [u8; 4]) -> Option<Client> {
    let large = block(&[("x", &"y".repeat(3000))]);
    let field = [&[0x40], &large[1..]].concat();
    let references = [0xbe; 9];
    let bytes = streams().flat_map(|stream| {
        let field = if stream == 1 { &field[..] } else { &[0xbe] };
        let head = [&get_attacked("/")[..], field, &references].concat();
        frame(HEADERS, WHOLE, stream, &head)
    });
    let bytes: Vec<u8> = bytes.collect();
    assert!(bytes.len() < 14 << 10);
    begin(address, from, &[], &bytes).await
}

/// Opens a connection and sends these bytes, in as far as the worker takes them.
async fn begin(
    address: SocketAddr,
    from: [u8; 4],
    settings: &[(u16, u32)],
    bytes: &[u8],
) -> Option<Client> {
    let stream = connect_from(from, address).await.ok()?;
    let mut client = Client::over(stream, settings).await;
    client.send(bytes).await.then_some(client)
}

/// The heads of one connection have a bound, whatever they were compressed to. What is over it is
/// refused so that a client may repeat it.
#[tokio::test]
async fn heads_of_a_connection_count_as_they_are_decoded() {
    let sink = Sink::start().await;
    let mut siege = Siege::new(1 << 40, sink.endpoint()).await;
    let mut attacker = send_bombs(siege.address, [127, 0, 0, 2]).await.unwrap();
    let last = streams().last().unwrap();
    assert_eq!(attacker.outcome(last).await, Outcome::Reset(REFUSED_STREAM));
    // 34 heads of 30 KiB are 1 MiB, and all others are refused.
    let is_refused = |bounds: &BoundCounts| bounds.refused_streams == 127 - 34;
    wait_for_bounds(&mut siege.manager, is_refused).await;
    let growth = siege.growth();
    assert!(growth < 3 << 10, "{growth} KiB");
    siege.bystander.end();
}

#[tokio::test]
async fn floods_of_decoded_heads_keep_to_the_budget() {
    let sink = Sink::start().await;
    Siege::new(BUDGET, sink.endpoint())
        .await
        .withstands(send_bombs)
        .await;
}

/// Large heads without compression, over HTTP/2.
#[tokio::test]
async fn floods_of_large_heads_keep_to_the_budget() {
    let sink = Sink::start().await;
    let large = "y".repeat(15_000);
    let head = [&get_attacked("/")[..], &block(&[("x", &large)])].concat();
    let few = streams().take(8);
    let bytes = few.flat_map(|stream| frame(HEADERS, END_HEADERS, stream, &head));
    let bytes: Vec<u8> = bytes.collect();
    Siege::new(BUDGET, sink.endpoint())
        .await
        .withstands(async |address, from| begin(address, from, &[], &bytes).await)
        .await;
}

/// Heads of HTTP/1 that never end.
#[tokio::test]
async fn floods_of_unfinished_heads_keep_to_the_budget() {
    let sink = Sink::start().await;
    let begun = format!(
        "GET / HTTP/1.1\r\nHost: attacked\r\nX: {}",
        "y".repeat(30_000)
    );
    Siege::new(BUDGET, sink.endpoint())
        .await
        .withstands(async |address, from| {
            let mut attacker = Peer::new(connect_from(from, address).await.ok()?);
            let _ = attacker.try_send(begun.as_bytes()).await;
            Some(attacker)
        })
        .await;
}

/// Large responses on all streams of a connection, of which the client takes nothing: the windows
/// are closed, or they are open and the client does not read. Each time, a connection holds little.
#[tokio::test]
async fn unread_responses_of_a_connection_have_a_bound() {
    const CONNECTIONS: u64 = 6;
    // In KiB: 384 of unread bytes, and what the requests themselves need in a debug build; and what
    // all connections share.
    const MOST_OF_ONE: u64 = 1536;
    const POOLS: u64 = 10 << 10;
    for (settings, opens) in UNREAD {
        let (endpoint, recorder) = big().await;
        let siege = Siege::new(1 << 40, endpoint).await;
        let mut attackers = Vec::new();
        for number in 0..CONNECTIONS as u8 {
            let from = [127, 0, 2, 1 + number];
            attackers.push(ask_for_much(siege.address, from, settings, opens).await);
        }
        let asked = CONNECTIONS as usize * (STREAMS as usize - 1);
        recorder.saw_at_least(asked).await;
        let growth = siege.growth();
        assert!(growth < CONNECTIONS * MOST_OF_ONE + POOLS, "{growth} KiB");
        siege.bystander.end();
    }
}

#[tokio::test]
async fn floods_of_unread_responses_keep_to_the_budget() {
    for (settings, opens) in UNREAD {
        let (endpoint, _recorder) = big().await;
        Siege::new(BUDGET, endpoint)
            .await
            .withstands(async |address, from| ask_for_much(address, from, settings, opens).await)
            .await;
    }
}

/// The settings of clients that take nothing, and by how much they open the connection's window.
const UNREAD: [(&[(u16, u32)], u32); 2] = [
    (&[(INITIAL_WINDOW_SIZE, 0)], 0),
    (&[(INITIAL_WINDOW_SIZE, MOST_WINDOW)], MOST_WINDOW - 65_535),
];

const MOST_WINDOW: u32 = (1 << 31) - 1;

/// Starts an instance whose responses are large.
async fn big() -> (WireEndpoint, Recorder) {
    let instance = peers::Instance::start().await;
    let endpoint = instance.endpoint(ATTACKED.0);
    (endpoint, Recorder::start(instance))
}

async fn ask_for_much(
    address: SocketAddr,
    from: [u8; 4],
    settings: &[(u16, u32)],
    opens: u32,
) -> Option<Client> {
    let update = match opens {
        0 => Vec::new(),
        opens => frame(WINDOW_UPDATE, 0, 0, &opens.to_be_bytes()),
    };
    let requests = streams().flat_map(|stream| frame(HEADERS, WHOLE, stream, &get_attacked(BIG)));
    let bytes: Vec<u8> = update.into_iter().chain(requests).collect();
    begin(address, from, settings, &bytes).await
}

/// A stream whose window is open gets its response while all others of its connection have closed
/// windows and hold what they have got.
#[tokio::test]
async fn streams_wait_for_no_window_of_another_stream() {
    let (endpoint, recorder) = big().await;
    let mut siege = Siege::new(1 << 40, endpoint).await;
    let settings = [(INITIAL_WINDOW_SIZE, 0)];
    let mut client = ask_for_much(siege.address, [127, 0, 0, 2], &settings, 0)
        .await
        .unwrap();
    recorder.saw_at_least(STREAMS as usize - 1).await;
    let last = streams().last().unwrap();
    let mut received = 0;
    let room = 8 << 20_usize;
    for stream in [0, last] {
        let update = (room as u32).to_be_bytes();
        assert!(client.send(&frame(WINDOW_UPDATE, 0, stream, &update)).await);
    }
    while received < room {
        let frame = client.next().await.expect("the connection is open");
        if frame.kind == crate::frames::DATA {
            assert_eq!(frame.stream, last);
            received += frame.payload.len();
        }
    }
    siege.bystander.is_served().await;
    siege.bystander.end();
}
