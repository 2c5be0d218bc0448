//! Counts the instructions that every request costs in user space, with callgrind, and compares the
//! counts with those in `benches/instructions.txt`. A count says less than a time, but it is the
//! same on a busy machine, so a change of one percent is visible. Another compiler gives other
//! counts, and so may a processor with other instructions.
//!
//! With `--save` the counts become the ones to compare with. A slower program is no failure:
//! whoever changes the code reads the table and decides.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use smoothserve::ipc::{Host, ListenerId, Route};
use smoothserve::proxy::CountingHeap;
use smoothserve::proxy::check::workload::{RouteTable, rewrite_request, rewrite_response};

/// The allocator of the worker.
#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

const CURL: &[u8] =
    b"GET /api/items?page=2 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: curl/8.14.1\r\n\
    Accept: */*\r\n\r\n";

const BROWSER: &[u8] = b"GET /account/orders/2041?view=full HTTP/1.1\r\nHost: shop.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.8,de;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: http://shop.example/account/orders\r\nConnection: keep-alive\r\n\
    Cookie: session=8d6f2c1e0b7a49538e21; theme=dark; cart=3f9a; consent=all; _id=1.2.1804.1763\r\n\
    Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\nSec-Fetch-User: ?1\r\nDNT: 1\r\nPriority: u=0, i\r\n\
    Cache-Control: max-age=0\r\n\r\n";

const POST: &[u8] = b"POST /api/items HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: shop-app/3.2\r\n\
    Accept: application/json\r\nAuthorization: Bearer 5f2b7c91d3e84a60\r\nContent-Type: application/json\r\n\
    Content-Length: 4096\r\nConnection: keep-alive\r\n\r\n";

const SMALL_RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\
    Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";

const PAGE_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
    Connection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Type: text/html; charset=utf-8\r\n\
    X-Frame-Options: DENY\r\nVary: Accept-Encoding, Cookie\r\nX-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: same-origin\r\nCross-Origin-Opener-Policy: same-origin\r\nContent-Encoding: gzip\r\n\
    Set-Cookie: session=8d6f2c1e0b7a49538e21; HttpOnly; Path=/; SameSite=Lax\r\n\r\n";

/// Calls of each workload. The keys of hash tables are random, which evens out over this many
/// lookups.
const CALLS: usize = 500;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().position(|argument| argument == "--count") {
        Some(at) => run(arguments.get(at + 1).context("which?")?),
        None => compare(arguments.iter().any(|argument| argument == "--save")),
    }
}

type Work = Box<dyn FnMut(usize)>;

type Workload = (&'static str, fn() -> Work);

/// The workloads, in the order in which a request meets them.
const WORKLOADS: [Workload; 8] = [
    ("request head, as of curl", || request(CURL)),
    ("request head, as of a browser", || request(BROWSER)),
    ("request head, POST", || request(POST)),
    ("route lookup, 1 host", || lookup(1)),
    ("route lookup, 100 hosts", || lookup(100)),
    ("route lookup, 5000 hosts", || lookup(5000)),
    ("response head, small", || response(SMALL_RESPONSE)),
    ("response head, of a page", || response(PAGE_RESPONSE)),
];

fn request(bytes: &'static [u8]) -> Work {
    Box::new(move |_| {
        let mut out = Vec::with_capacity(bytes.len() + 192);
        assert!(
            rewrite_request(black_box(bytes), &mut out),
            "expected a valid request"
        );
        black_box(out);
    })
}

fn response(bytes: &'static [u8]) -> Work {
    Box::new(move |_| {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        assert!(
            rewrite_response(black_box(bytes), &mut out),
            "expected a valid response"
        );
        black_box(out);
    })
}

/// Prepares lookups in a table in which every host has two paths; each call looks up another host.
fn lookup(count: usize) -> Work {
    let hosts: Vec<String> = (0..count)
        .map(|number| format!("customer-{number:04}.example"))
        .collect();
    let routes: Vec<(usize, Route)> = hosts
        .iter()
        .flat_map(|host| {
            let route = |path: &str| Route {
                listener: ListenerId(1),
                host: Host::Exact(host.clone()),
                path: path.to_owned(),
                strip: 0,
            };
            ["/", "/api"].map(|path| (0, route(path)))
        })
        .collect();
    let table = RouteTable::try_new(&routes).expect("every route is unique");
    Box::new(move |call| {
        let host = hosts[call * 7 % hosts.len()].as_bytes();
        assert!(table.find(black_box(host), b"/account/orders").is_some());
    })
}

/// The function whose instructions callgrind counts, callees included.
#[inline(never)]
fn counted(work: &mut Work) {
    for call in 0..CALLS {
        work(call);
    }
}

/// Runs one workload, after one uncounted call for what a process does only once.
fn run(name: &str) -> anyhow::Result<()> {
    let (_, prepare) = WORKLOADS
        .iter()
        .find(|(other, _)| *other == name)
        .context("none")?;
    let mut work = prepare();
    work(0);
    counted(&mut work);
    Ok(())
}

fn compare(save: bool) -> anyhow::Result<()> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let text = std::fs::read_to_string(&kept).unwrap_or_default();
    let before = read(&text);
    let rustc = Command::new("rustc").arg("--version").output()?;
    let mut saved = format!(
        "# Instructions a call, written by `make bench-instructions SAVE=--save` with {}",
        String::from_utf8_lossy(&rustc.stdout)
    );
    println!(
        "{:32}{:>8}{:>8}{:>10}",
        "instructions a call", "kept", "now", "change"
    );
    for (name, _) in WORKLOADS {
        let now = count(name)?;
        writeln!(saved, "{name}: {now}")?;
        match before.get(name) {
            Some(&kept) => {
                let change = (now as f64 / kept as f64 - 1.0) * 100.0;
                println!("{name:32}{kept:8}{now:8}{change:+9.1} %");
            }
            None => println!("{name:32}{:>8}{now:8}", "-"),
        }
    }
    if save {
        std::fs::write(&kept, saved)?;
    }
    Ok(())
}

fn read(kept: &str) -> BTreeMap<&str, u64> {
    let lines = kept.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter_map(|(name, count)| Some((name, count.parse().ok()?)))
        .collect()
}

/// Runs this program again under callgrind, and returns its instructions per call.
fn count(name: &str) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*counted*"])
        .arg(std::env::current_exe()?)
        .args(["--count", name])
        .output()
        .context("valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{said}");
    }
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let total: u64 = collected.context("no count")?.1.trim().parse()?;
    if total == 0 {
        bail!("nothing was counted; was `counted` inlined?");
    }
    Ok(total / CALLS as u64)
}
