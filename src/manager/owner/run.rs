//! The loop of the one task that owns all state: it waits for the next event and handles it.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;

use super::changes::remind_of_certificates;
use super::commands::perform;
use super::disk::FilesOutcome;
use super::end::{ask_for_restart, begin_end, end_faster, has_ended};
use super::errands::{Errand, Errands};
use super::from_workers::{start_worker, take_worker_event};
use super::manager::{Manager, Phase};
use super::options::ManagerOptions;
use super::ports::{close_passed, leave_ports};
use super::proceed::{proceed, take_files};
use super::publish::settle;
use super::takeover;
use crate::events;
use crate::manager::dbus;
use crate::manager::event::Event;
use crate::manager::handle::{CommandRequest, ManagerHandle};
use crate::manager::host::children;
use crate::manager::host::signals::{Signal, Signals};
use crate::manager::host::worker_user::worker_user;
use crate::manager::service::Service;
use crate::patience;
use crate::run_dir;
use crate::systemd::given::Given;
use crate::watch::Changed;

/// The time between two checks whether the workers are stuck, and between two signs of life to
/// systemd.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How many events are handled before their results are published and other work gets its turn.
const EVENTS_OF_TURN: usize = 256;

/// The time between two reminders that a certificate has to be renewed.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs the manager until it is told to end.
pub fn run(mut options: ManagerOptions, mut given: Given) -> anyhow::Result<()> {
    // Instances get paths in the run directory and have another working directory, so these paths
    // must be absolute.
    options.run_dir = std::path::absolute(&options.run_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    patience::within("the database of users", worker_user)?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async move {
        let _lock = run_dir::prepare(&options.run_dir)?;
        let signals = Signals::new()?;
        let (handle, requests, snapshots) = ManagerHandle::new();
        let control_socket = match given.control_socket() {
            Some(socket) => dbus::ControlSocket::Given(socket),
            None => dbus::ControlSocket::Path(options.run_dir.join("bus")),
        };
        let (reports, events) = mpsc::unbounded_channel();
        let scopes = takeover::scopes(&given).await;
        let holder = takeover::held_ports(&mut given, &options.run_dir).await;
        let bus = options.bus;
        let (waiting, outcomes) = Errands::new();
        if given.supervisor.is_none() {
            children::adopt_orphans().context("cannot take in orphans")?;
        }
        let mut manager = Manager::new(options, &mut given, snapshots, reports, waiting)?;
        takeover::take_over(&mut manager, given, scopes).await;
        settle(&mut manager);
        // systemd has the sockets by now.
        if let Some(holder) = holder {
            holder.release().await;
        }
        // D-Bus is served only now, so that the first caller already finds all services.
        dbus::serve(handle, control_socket, bus).await?;
        turn(&mut manager, signals, requests, events, outcomes).await
    });
    // A thread may still wait for a file system that does not answer.
    runtime.shutdown_background();
    result
}

/// Handles one event after the other until the manager has ended.
async fn turn(
    manager: &mut Manager,
    mut signals: Signals,
    mut requests: mpsc::Receiver<CommandRequest>,
    mut events: mpsc::UnboundedReceiver<Event>,
    mut outcomes: mpsc::UnboundedReceiver<(u64, FilesOutcome)>,
) -> anyhow::Result<()> {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The start already reports certificates that expire soon, so the first reminder comes a day
    // later.
    let mut reminder = tokio::time::interval_at((Instant::now() + DAY).into(), DAY);
    while !has_ended(manager) {
        tokio::select! {
            Some(request) = requests.recv(), if manager.errands.has_room() => {
                perform(manager, request.command, request.answer);
            }
            Some(outcome) = outcomes.recv() => take_files(manager, outcome),
            Some(event) = events.recv() => {
                take_event(manager, event);
                for _ in 1..EVENTS_OF_TURN {
                    let Ok(event) = events.try_recv() else { break };
                    take_event(manager, event);
                }
            }
            signal = signals.next() => take_signal(manager, signal),
            () = until(deadline(manager)) => tick(manager),
            _ = reminder.tick() => remind_of_certificates(manager),
            _ = heartbeat.tick() => {
                manager.workers.beat();
                manager.world.supervision.beat();
            }
        }
        proceed(manager);
        settle(manager);
        // A job that can end at once must have ended before the caller looks at it.
        manager.errands.send_answers();
    }
    if manager.phase == Phase::Leaving {
        tracing::info!("smoothserve ended, its workers and instances go on for the next");
        return Ok(());
    }
    leave_ports(manager).await;
    manager.world.socket_folders.close();
    manager.published.remove_state()?;
    tracing::info!(message_id = events::ENDED, "smoothserve ended");
    Ok(())
}

fn take_event(manager: &mut Manager, event: Event) {
    let serving = manager.phase == Phase::Serving;
    match event {
        Event::Instance(id, news) => manager.hear(id, news),
        Event::Worker(generation, event) => take_worker_event(manager, generation, event),
        Event::WorkerDue if serving => start_worker(manager),
        Event::WorkerDue => {}
        Event::PortLetGo(id) => manager.listeners.let_go(id),
        Event::Diagnosed(diagnosis) => {
            if let Some(service) = manager.services.get_mut(&diagnosis.service) {
                service.diagnosed(diagnosis, &mut manager.world);
            }
        }
        Event::Restarting(true) if serving => manager.phase = Phase::Leaving,
        Event::Restarting(false) if serving => begin_end(manager),
        Event::Restarting(_) => {}
        Event::Changed(Changed::Files(service)) => {
            manager.errands.queue(Errand::FilesChanged(service));
        }
        Event::Changed(Changed::Certificate(service)) => {
            manager.errands.queue(Errand::CertificateChanged(service));
        }
    }
}

fn take_signal(manager: &mut Manager, signal: Signal) {
    match (signal, manager.phase) {
        (Signal::Other(signal), _) => tracing::warn!(
            signal,
            "signal ignored: SIGHUP reloads, SIGTERM drains and ends, smoothctl does everything else"
        ),
        (Signal::Reload, _) => {
            manager.errands.queue(Errand::Reload(None));
        }
        (Signal::End, Phase::Serving) => ask_for_restart(manager),
        (Signal::End, _) => end_faster(manager),
    }
}

/// Returns when [`tick`] is due, or an errand may begin.
fn deadline(manager: &Manager) -> Option<Instant> {
    let services = manager.services.values();
    let services = services.filter_map(Service::deadline);
    // As long as only a worker serves that gets no tables, nobody takes their connections.
    let passing = manager.listeners.deadline();
    let passing = passing.filter(|_| manager.workers.are_serving());
    let errands = manager.errands.deadline().map(Instant::from);
    services.chain(passing).chain(errands).min()
}

/// Lets each service do what is due.
fn tick(manager: &mut Manager) {
    let now = Instant::now();
    if manager.workers.are_serving() {
        close_passed(manager, now);
    }
    let is_due = |service: &Service| service.deadline().is_some_and(|at| at <= now);
    let services = manager.services.iter();
    let due = services.filter(|(_, service)| is_due(service));
    let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
    for name in due {
        if let Some(service) = manager.services.get_mut(&name) {
            service.tick(&mut manager.world);
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
