//! A worker that gets table after table while it serves.
//!
//! A folder cannot hold this many services, so the tables come from here, over the worker's control
//! socket, as from a manager.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use smoothserve::ipc::{
    Address, Channel, EndpointId, EndpointState, FromWorker, Handling, HealthCheck, Host,
    ListenerId, MessageReceiver, MessageSender, Probe, Protocol, Route, ToWorker, WireEndpoint,
    WireListener, WireService, WireTable,
};

use crate::clients::Moderate;
use crate::configs::HOST;
use crate::peers::TOGETHER;
use crate::process::{cpu_time, memory};
use crate::report::{median, paragraph};

const PORT: u16 = 18730;
const INSTANCE: u16 = 18731;

/// The clients of the moderate load.
const CLIENTS: usize = 32;

const ROUNDS: usize = 5;
const STEADY: Duration = Duration::from_secs(2);

/// The time from one table to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Measures a table with few services and one with many.
pub fn table(programs: &Path) -> anyhow::Result<String> {
    let mut text = paragraph(&format!(
        "A new table every {} ms, which changes the host of one service, under a moderate load of another service. Each service \
         has one instance and two hosts:",
        PAUSE.as_millis()
    ));
    text += "| services in the table | time from sending to use | CPU of the worker per table | p99 before | p99 meanwhile | \
             ratio | errors | memory |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for services in [50, 500, 5000] {
        eprintln!("tables of {services}");
        text += &row(programs, services)?;
    }
    Ok(text)
}

fn row(programs: &Path, services: usize) -> anyhow::Result<String> {
    let instance = Command::new(programs.join("upstream"))
        .env("PORT", INSTANCE.to_string())
        .spawn()?;
    let _instance = Ended(instance);
    let mut worker = Worker::start(programs)?;
    let mut last = WireTable::default();
    let mut next = |worker: &mut Worker| {
        let table = next_table(services, &last);
        let took = worker.apply(table.changes_since(&last));
        last = table;
        took
    };
    next(&mut worker)?;
    let mut took = Vec::new();
    let mut used = Vec::new();
    let (mut before, mut meanwhile, mut ratios, mut errors) = (vec![], vec![], vec![], 0);
    for _ in 0..ROUNDS {
        let load = Moderate::start(TOGETHER.others, PORT, CLIENTS);
        let cpu = worker.cpu()?;
        thread::sleep(STEADY);
        let idle_cpu = worker.cpu()? - cpu;
        let (steady, _) = load.stop()?;
        let load = Moderate::start(TOGETHER.others, PORT, CLIENTS);
        let (begin, cpu) = (Instant::now(), worker.cpu()?);
        let mut applied = 0;
        while begin.elapsed() < STEADY {
            took.push(next(&mut worker)?.as_secs_f64());
            applied += 1;
            thread::sleep(PAUSE);
        }
        let of_tables = worker.cpu()? - cpu;
        let (changing, _) = load.stop()?;
        let share = begin.elapsed().as_secs_f64() / STEADY.as_secs_f64();
        used.push((of_tables.as_secs_f64() - idle_cpu.as_secs_f64() * share) / f64::from(applied));
        ratios.push(changing.p99 / steady.p99);
        before.push(steady.p99 / 1e3);
        meanwhile.push(changing.p99 / 1e3);
        errors += steady.errors + changing.errors;
    }
    let mut row = String::new();
    let _ = writeln!(
        row,
        "| {services} | {:.1} ms | {:.1} ms | {:.2} ms | {:.2} ms | {:.2} | {errors} | {:.1} MiB |",
        median(took) * 1e3,
        median(used) * 1e3,
        median(before),
        median(meanwhile),
        median(ratios),
        memory(&[worker.process.0.id()])? as f64 / 1024.0
    );
    Ok(row)
}

/// Returns the next table. The clients ask for its first service; the last service has another host
/// in each table.
fn next_table(services: usize, last: &WireTable) -> WireTable {
    let number = last.number + 1;
    let hosts = |index: usize| match index {
        0 => [HOST.to_owned(), format!("www.{HOST}")],
        last if last + 1 == services => [
            format!("changing-{number}.example"),
            "constant.example".to_owned(),
        ],
        index => [
            format!("customer-{index:04}.example"),
            format!("www.customer-{index:04}.example"),
        ],
    };
    let route = |host: String| Route {
        listener: ListenerId(1),
        host: Host::Exact(host),
        path: "/".to_owned(),
        strip: 0,
    };
    let service = |index: usize| WireService {
        name: format!("customer-{index:04}"),
        running: true,
        handling: Handling::default(),
        routes: hosts(index).map(route).into(),
        endpoints: vec![WireEndpoint {
            id: EndpointId(index as u64 + 1),
            address: Address::Tcp(SocketAddr::from(([127, 0, 0, 1], INSTANCE))),
            protocol: Protocol::Http1,
            state: EndpointState::Active,
            probe: Probe::Connect,
            check: HealthCheck::Steady,
        }],
    };
    // Like a manager, this makes only changed services anew.
    let part = |index: usize| match last.services.get(index) {
        Some(known) if index + 1 < services => known.clone(),
        _ => Arc::new(service(index)),
    };
    WireTable {
        number,
        listeners: vec![WireListener {
            id: ListenerId(1),
            address: SocketAddr::from(([127, 0, 0, 1], PORT)),
            tls: None,
            proxy_protocol: false,
            passing: false,
        }],
        services: (0..services).map(part).collect(),
        ..WireTable::default()
    }
}

/// A process that is killed when this value is dropped.
#[derive(Debug)]
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A worker, and the manager's end of its control socket.
struct Worker {
    process: Ended,
    runtime: tokio::runtime::Runtime,
    sender: MessageSender<ToWorker>,
    receiver: MessageReceiver<FromWorker>,
    _folder: tempfile::TempDir,
}

impl Worker {
    fn start(programs: &Path) -> anyhow::Result<Worker> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("worker.sock");
        let control = UnixListener::bind(&path)?;
        let process = Command::new(programs.join("smoothserve"))
            .arg("proxy")
            .stdin(Stdio::from(OwnedFd::from(control)))
            .stderr(Stdio::null())
            .spawn()?;
        let process = Ended(process);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let (sender, receiver) = Channel::split(UnixStream::connect(&path)?)?;
        drop(entered);
        let socket = TcpListener::bind(("127.0.0.1", PORT))?;
        let mut worker = Worker {
            process,
            runtime,
            sender,
            receiver,
            _folder: folder,
        };
        worker.runtime.block_on(
            worker
                .sender
                .send(&ToWorker::Listener(ListenerId(1)), Some(socket.as_fd())),
        )?;
        Ok(worker)
    }

    /// Sends a table, and returns the time until all threads of the worker use it.
    fn apply(&mut self, table: WireTable) -> anyhow::Result<Duration> {
        let number = table.number;
        let table = ToWorker::Table(table);
        let Worker {
            runtime,
            sender,
            receiver,
            ..
        } = self;
        let begin = Instant::now();
        runtime.block_on(async {
            let (sent, used) = tokio::join!(sender.send(&table, None), async {
                loop {
                    match receiver.receive().await?.context("the worker has ended")? {
                        FromWorker::Acknowledged(acknowledged) if acknowledged == number => {
                            return anyhow::Ok(begin.elapsed());
                        }
                        FromWorker::Health {
                            fault: Some(fault), ..
                        } => bail!("{fault}"),
                        _ => {}
                    }
                }
            });
            sent?;
            used
        })
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_time(&[self.process.0.id()])
    }
}
