//! The cost of a request with many hosts, many instances, and many connections.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::process::{Resource, getrlimit};

use super::scene::{Cores, Scene, Service};
use crate::peers::APART;
use crate::process::{cpu_time, on_cores};
use crate::report::{median, paragraph};

/// The number of rounds that count; one more goes before them as warm-up.
const ROUNDS: usize = 15;
const SECONDS: u64 = 1;

const CONNECTIONS: usize = 64;

/// The most hosts that one service has in its file.
const MOST_HOSTS: usize = 1000;

/// A worker uses a third of its descriptors for client connections, and keeps these few to itself.
const SPARE_DESCRIPTORS: u64 = 64;

/// One column of a table.
#[derive(Debug)]
struct Column {
    name: String,
    port: u16,
    hosts: Vec<String>,
    connections: usize,
}

/// What was measured for one column in one round.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// The CPU time of a request, in microseconds.
    cpu: f64,
    p99: f64,
    errors: u64,
}

/// Measures all three tables.
pub fn tables(programs: &Path) -> anyhow::Result<String> {
    let mut services = Vec::new();
    let hosts = with_hosts(&mut services);
    let instances = with_instances(&mut services);
    let scene = Scene::start(programs, &services, Cores::WorkerAlone)?;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from((limit - SPARE_DESCRIPTORS) / 3)?.min(10_000);
    let connections: Vec<Column> = [100, 1000, most]
        .into_iter()
        .map(|connections| Column {
            name: connections.to_string(),
            connections,
            port: instances[1].port,
            hosts: instances[1].hosts.clone(),
        })
        .collect();
    let mut text = paragraph(
        "The worker has one core, everything else uses the other core. The load is a GET of a few bytes on connections that stay \
         open. CPU time is that of the worker and the manager, and ratios are relative to the first column.",
    );
    text += paragraph(
        "Number of hosts that the router searches, with 64 connections; the clients ask for each host in turn (of the 5,000 \
         hosts of five services, for the 1,000 hosts of one):",
    )
    .trim_start_matches('\n');
    text += &measure(&scene, "hosts", &hosts)?;
    text += "\nNumber of instances of the service, with 64 connections:\n\n";
    text += &measure(&scene, "instances", &instances)?;
    text += "\nNumber of connections, with 4 instances:\n\n";
    text += &measure(&scene, "connections", &connections)?;
    if most < 10_000 {
        let _ = write!(
            text,
            "\nThis machine limits a process to {limit} descriptors, which is enough for {most} connections.\n"
        );
    }
    Ok(text)
}

fn column(service: &Service, name: usize) -> Column {
    Column {
        name: name.to_string(),
        port: service.port,
        hosts: service.hosts.clone(),
        connections: CONNECTIONS,
    }
}

/// Adds services with 1, 100 and 5,000 hosts on a port each, and returns their columns.
fn with_hosts(services: &mut Vec<Service>) -> Vec<Column> {
    let mut columns = Vec::new();
    for (port, count) in [(18710, 1), (18711, 100), (18712, 5000)] {
        let names: Vec<String> = (0..count)
            .map(|number| format!("customer-{number:04}.example"))
            .collect();
        let first = services.len();
        for (number, hosts) in names.chunks(MOST_HOSTS).enumerate() {
            services.push(Service {
                name: format!("hosts-{count}-{number}"),
                hosts: hosts.to_vec(),
                port,
                instances: 1,
                args: String::new(),
            });
        }
        columns.push(column(&services[first], count));
    }
    columns
}

/// Adds services with 1, 4, 16 and 64 instances on a port each, and returns their columns.
fn with_instances(services: &mut Vec<Service>) -> Vec<Column> {
    let mut columns = Vec::new();
    for (port, instances) in [(18713, 1), (18714, 4), (18715, 16), (18716, 64)] {
        let service = Service {
            name: format!("instances-{instances}"),
            hosts: vec!["shop.example".to_owned()],
            port,
            instances,
            args: String::new(),
        };
        columns.push(column(&service, instances));
        services.push(service);
    }
    columns
}

fn measure(scene: &Scene, what: &str, columns: &[Column]) -> anyhow::Result<String> {
    eprintln!("{what}");
    let pids = [scene.manager(), scene.worker];
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let mut measured = vec![None; columns.len()];
        for turn in 0..columns.len() {
            let index = (turn + round) % columns.len();
            let before = cpu_time(&pids)?;
            let (requests, errors, p99) = load(&columns[index])?;
            let used = cpu_time(&pids)? - before;
            measured[index] = Some(Measured {
                cpu: used.as_secs_f64() * 1e6 / requests as f64,
                p99,
                errors,
            });
        }
        let measured: Option<Vec<Measured>> = measured.into_iter().collect();
        if round > 0 {
            rounds.push(measured.context("a column was not measured")?);
        }
    }
    Ok(table(what, columns, &rounds))
}

fn table(what: &str, columns: &[Column], rounds: &[Vec<Measured>]) -> String {
    let row = |name: &str, cell: &dyn Fn(usize) -> String| {
        let cells: Vec<String> = (0..columns.len()).map(cell).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    };
    let each = |index: usize, figure: &dyn Fn(&Vec<Measured>, usize) -> f64| {
        median(rounds.iter().map(|round| figure(round, index)).collect())
    };
    let mut text = row(what, &|index| columns[index].name.clone());
    text += &row("---", &|_| "---".to_owned());
    text += &row("CPU per request, µs", &|index| {
        format!("{:.2}", each(index, &|round, index| round[index].cpu))
    });
    text += &row("ratio", &|index| {
        let ratio = |round: &Vec<Measured>, index: usize| round[index].cpu / round[0].cpu;
        format!("{:.3}", each(index, &ratio))
    });
    text += &row("p99, ms", &|index| {
        format!("{:.2}", each(index, &|round, index| round[index].p99) / 1e3)
    });
    text += &row("errors", &|index| {
        let errors: u64 = rounds.iter().map(|round| round[index].errors).sum();
        errors.to_string()
    });
    text
}

/// Runs wrk, which asks for all hosts in turn, and returns the requests, the errors, and the 99th
/// percentile in microseconds. The number of different requests is the same in each column, so that
/// wrk is equally fast in each: a slower client sends less at a time, which costs the proxy more.
fn load(column: &Column) -> anyhow::Result<(u64, u64, f64)> {
    let script = tempfile::NamedTempFile::new()?;
    let hosts: Vec<String> = column
        .hosts
        .iter()
        .map(|host| format!("'{host}'"))
        .collect();
    let text = format!(
        "local hosts = {{{hosts}}}\n\
         local requests, last = {{}}, 0\n\
         init = function()\n  for at = 1, {MOST_HOSTS} do\n    \
         wrk.headers['Host'] = hosts[(at - 1) % #hosts + 1]\n    wrk.headers['X-Number'] = at\n    \
         requests[at] = wrk.format('GET', '/')\n  end\nend\n\
         request = function()\n  last = last % #requests + 1\n  return requests[last]\nend\n\
         done = function(summary, latency)\n  local errors = summary.errors\n  \
         print('figures', summary.requests, errors.connect + errors.read + errors.write + errors.status + errors.timeout, \
         latency:percentile(99))\nend\n",
        hosts = hosts.join(",")
    );
    std::fs::write(script.path(), text)?;
    let output = on_cores(APART.others, "wrk")
        .arg("-t1")
        .arg(format!("-c{}", column.connections))
        .arg(format!("-d{SECONDS}s"))
        .arg("-s")
        .arg(script.path())
        .arg(format!("http://127.0.0.1:{}", column.port))
        .output()
        .context("cannot run wrk, which `make bench-growth` installs")?;
    ensure!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout)?;
    let figures = said.lines().find_map(|line| line.strip_prefix("figures"));
    let figures: Vec<&str> = figures
        .context("wrk printed no figures")?
        .split_ascii_whitespace()
        .collect();
    let [requests, errors, p99] = figures.as_slice() else {
        anyhow::bail!("unexpected figures of wrk: {said}");
    };
    Ok((requests.parse()?, errors.parse()?, p99.parse()?))
}
