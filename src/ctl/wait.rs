//! Waits for jobs, and shows their steps in a line.
//!
//! All jobs are looked at together: jobs that have ended are forgotten after a while, so waiting
//! for one must not mean to miss the end of another. A restart of smoothserve does not end its
//! jobs: the next manager goes on with them under the same numbers, and so does the waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use zbus::OwnedObjectPath;

use super::client::ManagerClient;
use super::error::CtlError;
use super::screen::Line;
use super::{render, reports};
use crate::bus::Bus;
use crate::cli::{RunDir, exit};
use crate::status::{JobState, JobStatus, Snapshot};

/// How often the state of the jobs is asked for without a signal: no signal of the manager tells of
/// a new step.
const LOOK: Duration = Duration::from_millis(200);

/// How long nobody may be there before smoothserve counts as gone. systemd starts it again at once.
const GONE: Duration = Duration::from_secs(10);

/// How long a smoothserve that was started again may take to answer. systemd waits as long.
const STARTING: Duration = Duration::from_secs(90);

/// The pause between two attempts to reach a smoothserve that is being restarted.
const RETRY: Duration = Duration::from_millis(100);

/// Waits until all jobs have ended, unless `no_block` is set. Fails if one of them was not done.
pub(super) async fn for_jobs(
    client: ManagerClient,
    (run_dir, bus): (&RunDir, Bus),
    jobs: Vec<OwnedObjectPath>,
    no_block: bool,
) -> Result<(), CtlError> {
    if no_block {
        return Ok(());
    }
    let mut waiting = Waiting {
        client,
        open: jobs,
        failures: Vec::new(),
        line: Line::new(),
    };
    let ended = tokio::select! {
        ended = waiting.until_all_have_ended(run_dir, bus) => ended,
        _ = tokio::signal::ctrl_c() => Err(CtlError::new(
            exit::INTERRUPTED,
            "no longer waiting; the job goes on, see smoothctl status",
        )),
    };
    waiting.line.clear();
    ended?;
    match waiting.failures.is_empty() {
        true => Ok(()),
        false => Err(CtlError::new(1, waiting.failures.join("\n"))),
    }
}

/// The jobs that are waited for.
struct Waiting {
    client: ManagerClient,
    /// The jobs that have not ended yet.
    open: Vec<OwnedObjectPath>,
    /// How jobs have ended that were not done.
    failures: Vec<String>,
    line: Line,
}

impl Waiting {
    async fn until_all_have_ended(&mut self, run_dir: &RunDir, bus: Bus) -> Result<(), CtlError> {
        let mut signals = Signals::new(&self.client).await?;
        let mut is_ending = false;
        while !self.open.is_empty() {
            let dump = match self.client.may_run().await {
                true => self.client.dump().await,
                false => Err(CtlError::new(exit::UNAVAILABLE, "smoothserve went away")),
            };
            match dump {
                Ok((_, snapshot)) => {
                    is_ending = snapshot.summary.starts_with("ending");
                    self.look(&snapshot).await?;
                }
                Err(error) if error.status() != exit::UNAVAILABLE || is_ending => {
                    return Err(error);
                }
                Err(error) => {
                    self.line
                        .show("smoothserve is being restarted, waiting for it");
                    self.client = again(run_dir, bus).await.ok_or(error)?;
                    signals = Signals::new(&self.client).await?;
                    continue;
                }
            }
            if !self.open.is_empty() {
                // A timeout is a look without a signal.
                let _ = tokio::time::timeout(LOOK, signals.next()).await;
            }
        }
        Ok(())
    }

    /// Takes note of the jobs that have ended, and shows what the first of the others does.
    async fn look(&mut self, snapshot: &Snapshot) -> Result<(), CtlError> {
        let mut running: Option<&JobStatus> = None;
        for path in std::mem::take(&mut self.open) {
            let id = path.rsplit('/').next().and_then(|id| id.parse().ok());
            let Some(job) = id.and_then(|id: u32| snapshot.jobs.get(&id)) else {
                let message = "smoothserve was restarted and knows nothing of the job any more";
                return Err(CtlError::new(exit::UNAVAILABLE, message));
            };
            if job.state == JobState::Running {
                running = running.or(Some(job));
                self.open.push(path);
                continue;
            }
            let mut ended = JobStatus::clone(job);
            reports::add_to_job(&self.client, &path, &mut ended).await;
            let message = render::ended(&ended);
            match ended.state {
                JobState::Done => self.line.finish(&message),
                _ => {
                    self.line.clear();
                    self.failures.push(message);
                }
            }
        }
        if let Some(job) = running {
            self.line.show(&render::step(job));
        }
        Ok(())
    }
}

/// The signals of the manager. A task takes them in, because the connection carries nothing else
/// while signals wait that nobody takes.
struct Signals {
    came: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Signals {
    async fn new(client: &ManagerClient) -> Result<Signals, CtlError> {
        let mut signals = client.signals().await?;
        let came = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        let noted = came.clone();
        task.spawn(async move {
            while signals.next().await.is_some() {
                noted.notify_one();
            }
            // The end of the connection is something to look at, too.
            noted.notify_one();
        });
        Ok(Signals { came, _task: task })
    }

    /// Waits for the next signal.
    async fn next(&mut self) {
        self.came.notified().await;
    }
}

/// Connects to a smoothserve that was started again. `None`: nobody comes back.
async fn again(run_dir: &RunDir, bus: Bus) -> Option<ManagerClient> {
    let lost = Instant::now();
    while lost.elapsed() < GONE {
        // Only one that runs: nobody has asked for another one if it was stopped. One that runs and
        // does not answer yet is waited for.
        let connecting = async {
            let client = ManagerClient::connect_to_running(run_dir, bus).await?;
            client.dump().await.is_ok().then_some(client)
        };
        if let Ok(Some(client)) = tokio::time::timeout(STARTING, connecting).await {
            return Some(client);
        }
        tokio::time::sleep(RETRY).await;
    }
    None
}
