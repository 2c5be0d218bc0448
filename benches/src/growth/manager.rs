//! The manager with many services: its start, its reloads, its cost while nothing happens, and a
//! rollout among many services.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::scene::{Cores, Scene, Service};
use crate::clients::Moderate;
use crate::configs::HOST;
use crate::peers::TOGETHER;
use crate::process::{cpu_time, memory};
use crate::report::{median, paragraph};

const PORT: u16 = 18720;

/// Reloads of each kind, of which the median counts.
const RELOADS: usize = 7;

/// How long the cost of doing nothing is measured.
const IDLE: Duration = Duration::from_secs(10);

/// The time in which the manager finishes what a start or a reload has left to do.
const SETTLING: Duration = Duration::from_millis(300);

/// Rollouts of a service, of which the median counts.
const ROLLOUTS: usize = 7;

/// The clients of the moderate load.
const CLIENTS: usize = 32;

/// How long a load runs without a rollout, and how long it runs during reloads.
const STEADY: Duration = Duration::from_secs(3);

/// Measures all tables about the manager.
pub fn tables(programs: &Path) -> anyhow::Result<String> {
    let mut rows = Rows::default();
    let mut rollouts = String::from(
        "\n| rollout of one service of 3 instances | CPU of the manager | CPU of the worker per request, steady | during the rollout | \
         p99 steady | during the rollout | replaced instances of other services | errors |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut columns = vec!["services × instances".to_owned()];
    for (services, instances) in [(2, 3), (200, 3), (1000, 1)] {
        columns.push(format!("{services} × {instances}"));
        eprintln!("{services} × {instances}");
        let services = many(services, instances);
        let scene = Scene::start(programs, &services, Cores::Shared)?;
        figures(&scene, &services, &mut rows)?;
        if instances == 3 {
            rollouts += &rollout(&scene, services.len())?;
        }
    }
    let rule = vec!["---"; columns.len()].join(" | ");
    let columns = columns.join(" | ");
    let mut text = paragraph(
        "The manager, with everything on both cores. A reload lasts from `smoothctl reload` to its answer: the manager has read \
         all files, planned all changes, and started to carry them out. CPU time is that of the manager.",
    );
    let _ = write!(text, "| {columns} |\n| {rule} |\n");
    for (name, cells) in rows.0 {
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text += &rollouts;
    Ok(text)
}

/// The cells of each row; the rows are in the order in which they were begun.
#[derive(Debug, Default)]
struct Rows(Vec<(&'static str, Vec<String>)>);

impl Rows {
    fn add(&mut self, name: &'static str, cell: String) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, cells)) => cells.push(cell),
            None => self.0.push((name, vec![cell])),
        }
    }
}

fn many(services: usize, instances: usize) -> Vec<Service> {
    let service = |number: usize| Service {
        name: format!("shop-{number:04}"),
        hosts: match number {
            0 => vec![HOST.to_owned()],
            _ => vec![format!("{number}.example"), format!("www.{number}.example")],
        },
        port: PORT,
        instances,
        args: String::new(),
    };
    (0..services).map(service).collect()
}

fn figures(scene: &Scene, services: &[Service], rows: &mut Rows) -> anyhow::Result<()> {
    let start = &scene.start;
    rows.add("start until smoothserve is ready", seconds(start.ready));
    rows.add("start until all instances are ready", seconds(start.all));
    rows.add("CPU of the manager for the start", milliseconds(start.cpu));
    thread::sleep(SETTLING);
    let before = [scene.manager(), scene.worker].map(|pid| cpu_time(&[pid]));
    thread::sleep(IDLE);
    let after = [scene.manager(), scene.worker].map(|pid| cpu_time(&[pid]));
    let [manager, worker] = [0, 1].map(|index| -> anyhow::Result<Duration> {
        let [before, after] = [&before, &after].map(|times| times[index].as_ref().ok().copied());
        Ok(after.unwrap_or_default() - before.unwrap_or_default())
    });
    rows.add(
        "CPU of the manager in 10 s without work",
        milliseconds(manager?),
    );
    rows.add(
        "CPU of the worker in that time (a health check of each instance every 2 s)",
        milliseconds(worker?),
    );
    rows.add("memory of the manager", mebibytes(scene.manager())?);
    rows.add("memory of the worker", mebibytes(scene.worker)?);
    // The first reload is warm-up, for the pages of the files and the executable of smoothctl.
    let mut reload = |name, cpu, change: &dyn Fn(&mut Service, usize)| -> anyhow::Result<()> {
        let mut times = Vec::new();
        let mut used = Vec::new();
        for round in 0..=RELOADS {
            // One of the last services is changed, so that the load asks for none of the changed
            // ones.
            let mut service = services[services.len() - 1 - round % (services.len() - 1)].clone();
            change(&mut service, round);
            scene.write(&service)?;
            let before = cpu_time(&[scene.manager()])?;
            let begin = Instant::now();
            scene.smoothctl(&["reload", "--no-block"])?;
            times.push(begin.elapsed().as_secs_f64());
            thread::sleep(SETTLING);
            used.push((cpu_time(&[scene.manager()])? - before).as_secs_f64());
        }
        let [times, used] = [times, used].map(|figures| median(figures[1..].to_vec()));
        rows.add(name, milliseconds(Duration::from_secs_f64(times)));
        rows.add(cpu, milliseconds(Duration::from_secs_f64(used)));
        Ok(())
    };
    reload("reload without a change", "CPU of this reload", &|_, _| {})?;
    reload(
        "reload with a changed host",
        "CPU of this reload (changed host)",
        &|service, round| {
            service.hosts = vec![format!("{round}.changed.example")];
        },
    )?;
    reload(
        "reload with a new process",
        "CPU of this reload and of 0.3 s of its rollout",
        &|service, round| {
            service.args = round.to_string();
        },
    )?;
    // This reload waits for the rollouts.
    scene.smoothctl(&["reload"])?;
    rows.add(
        "memory of the manager afterwards",
        mebibytes(scene.manager())?,
    );
    under_reloads(scene, services, rows)
}

/// Measures what a load notices of reloads in quick succession.
fn under_reloads(scene: &Scene, services: &[Service], rows: &mut Rows) -> anyhow::Result<()> {
    let mut ratios = Vec::new();
    let (mut reloads, mut errors) = (0, 0);
    for round in 0..3 {
        let load = Moderate::start(TOGETHER.others, PORT, CLIENTS);
        thread::sleep(STEADY);
        let (steady, _) = load.stop()?;
        let load = Moderate::start(TOGETHER.others, PORT, CLIENTS);
        let begin = Instant::now();
        while begin.elapsed() < STEADY {
            let mut service = services[services.len() - 1].clone();
            service.hosts = vec![format!("{reloads}.{round}.example")];
            scene.write(&service)?;
            scene.smoothctl(&["reload", "--no-block"])?;
            reloads += 1;
        }
        let (reloading, _) = load.stop()?;
        ratios.push(reloading.p99 / steady.p99);
        errors += steady.errors + reloading.errors;
    }
    let ratio = median(ratios);
    rows.add(
        "p99 of a moderate load during constant reloads / p99 without",
        format!("{ratio:.2}"),
    );
    rows.add(
        "reloads and errors in that time",
        format!("{reloads}, {errors}"),
    );
    Ok(())
}

/// Replaces the instances of the second service again and again, while the clients ask for the
/// first one.
fn rollout(scene: &Scene, services: usize) -> anyhow::Result<String> {
    const OTHER: &str = "shop-0001";
    let before = others(scene, OTHER)?;
    let mut manager = Vec::new();
    let (mut steady_cpu, mut rolling_cpu) = (Vec::new(), Vec::new());
    let (mut steady_p99, mut rolling_p99) = (Vec::new(), Vec::new());
    let mut errors = 0;
    for _ in 0..ROLLOUTS {
        let load = Moderate::start(TOGETHER.others, PORT, CLIENTS);
        let cpu = cpu_time(&[scene.worker])?;
        thread::sleep(STEADY);
        let used = cpu_time(&[scene.worker])? - cpu;
        let (steady, _) = load.stop()?;
        steady_cpu.push(used.as_secs_f64() / steady.requests as f64);
        steady_p99.push(steady.p99);
        let load = Moderate::start(TOGETHER.others, PORT, CLIENTS);
        let [of_manager, cpu] = [scene.manager(), scene.worker].map(|pid| cpu_time(&[pid]));
        let (of_manager, cpu) = (of_manager?, cpu?);
        scene.smoothctl(&["restart", OTHER])?;
        manager.push((cpu_time(&[scene.manager()])? - of_manager).as_secs_f64());
        let used = cpu_time(&[scene.worker])? - cpu;
        let (rolling, _) = load.stop()?;
        rolling_cpu.push(used.as_secs_f64() / rolling.requests as f64);
        rolling_p99.push(rolling.p99);
        errors += steady.errors + rolling.errors;
    }
    let after = others(scene, OTHER)?;
    ensure!(
        before.len() == services - 1 && after.len() == before.len(),
        "expected the instances of all other services"
    );
    let replaced = before
        .iter()
        .filter(|(name, pids)| after.get(*name) != Some(pids));
    Ok(format!(
        "| among {services} services | {:.1} ms | {:.1} µs | {:.1} µs | {:.2} ms | {:.2} ms | {} | {errors} |\n",
        median(manager) * 1e3,
        median(steady_cpu) * 1e6,
        median(rolling_cpu) * 1e6,
        median(steady_p99) / 1e3,
        median(rolling_p99) / 1e3,
        replaced.count(),
    ))
}

/// Returns the processes of all services but this one.
fn others(scene: &Scene, name: &str) -> anyhow::Result<BTreeMap<String, Vec<u64>>> {
    let mut pids = scene.pids()?;
    pids.remove(name);
    Ok(pids)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn mebibytes(pid: u32) -> anyhow::Result<String> {
    Ok(format!("{:.1} MiB", memory(&[pid])? as f64 / 1024.0))
}
