//! One job: its parts, and how it ends.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::part::{Outcome, Part};
use crate::status::{FailureReport, JobKind, JobState, JobStatus};

/// A job that runs, or has ended a short time ago.
#[derive(Debug)]
pub(super) struct Job {
    /// What was asked for.
    pub(super) kind: JobKind,
    /// The name of the service that the job is about; empty for a reload.
    service: String,
    /// What the job is to do for each service.
    pub(super) parts: Vec<Part>,
    /// What a job says that has changed nothing.
    unchanged: String,
    /// What is being done at the moment, as text for people.
    pub(super) step: String,
    end: Option<End>,
}

/// The state of a job that is saved for the next manager.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedJob {
    kind: JobKind,
    service: String,
    parts: Vec<Part>,
    unchanged: String,
    state: JobState,
}

/// The end of a job: its time, and the final status, which does not change any more.
#[derive(Debug)]
struct End {
    at: Instant,
    status: Arc<JobStatus>,
}

impl Job {
    /// Makes a job that has not ended.
    pub(super) fn new(kind: JobKind, service: &str, parts: Vec<Part>, unchanged: String) -> Job {
        Job {
            kind,
            service: service.to_owned(),
            parts,
            unchanged,
            step: String::new(),
            end: None,
        }
    }

    /// Returns the state that the next manager needs.
    pub(super) fn save(&self) -> SavedJob {
        let ended = self.end.as_ref().map(|end| end.status.state);
        SavedJob {
            kind: self.kind,
            service: self.service.clone(),
            parts: self.parts.clone(),
            unchanged: self.unchanged.clone(),
            state: ended.unwrap_or(JobState::Running),
        }
    }

    /// Goes on with a job of the last manager. One that had ended counts as ended now.
    pub(super) fn restore(saved: SavedJob, now: Instant) -> Job {
        let mut job = Job::new(saved.kind, &saved.service, saved.parts, saved.unchanged);
        if saved.state != JobState::Running {
            job.end(saved.state, now);
        }
        job
    }

    /// Returns true if the job has not ended.
    pub(super) fn runs(&self) -> bool {
        self.end.is_none()
    }

    /// Returns when the job has ended, if it has.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.end.as_ref().map(|end| end.at)
    }

    /// Ends the job when the last of its parts has ended. Returns true if it has ended by that.
    pub(super) fn conclude(&mut self, id: u32, now: Instant) -> bool {
        if self.end.is_some() || self.parts.iter().any(|part| part.outcome.is_none()) {
            return false;
        }
        let any = |wanted: fn(&Outcome) -> bool| {
            self.parts
                .iter()
                .filter_map(|part| part.outcome.as_ref())
                .any(wanted)
        };
        let state = if any(|outcome| matches!(outcome, Outcome::Failed { .. })) {
            JobState::Failed
        } else if any(|outcome| *outcome == Outcome::Superseded) {
            JobState::Superseded
        } else {
            JobState::Done
        };
        self.end(state, now);
        match state {
            JobState::Failed => {
                // Those who may read the log may read what the instances have written, too.
                let error = self.report();
                let error = error.text();
                tracing::error!(job = id, kind = ?self.kind, service = self.service, error, "job failed")
            }
            _ => {
                tracing::info!(job = id, kind = ?self.kind, service = self.service, state = ?state, "job ended")
            }
        }
        true
    }

    /// Says what the job has done, service by service.
    fn changes(&self) -> Vec<String> {
        let done = self.parts.iter().filter_map(|part| {
            let what = part.what.as_ref()?;
            (part.outcome == Some(Outcome::Done)).then(|| format!("{}: {what}", part.service))
        });
        let changes: Vec<String> = done.collect();
        match changes.is_empty() && self.parts.is_empty() && !self.unchanged.is_empty() {
            true => vec![self.unchanged.clone()],
            false => changes,
        }
    }

    fn error(&self) -> Option<String> {
        let errors: Vec<&str> = self
            .parts
            .iter()
            .filter_map(|part| match &part.outcome {
                Some(Outcome::Failed { error, .. }) => Some(error.as_str()),
                _ => None,
            })
            .collect();
        (!errors.is_empty()).then(|| errors.join("\n"))
    }

    fn report(&self) -> FailureReport {
        let outcomes = self.parts.iter().filter_map(|part| part.outcome.as_ref());
        FailureReport::join(outcomes.filter_map(|outcome| match outcome {
            Outcome::Failed { report, .. } => Some(report.as_str()),
            _ => None,
        }))
    }

    /// Ends the job in this state.
    pub(super) fn end(&mut self, state: JobState, at: Instant) {
        self.step.clear();
        let status = Arc::new(self.status_in(state));
        self.end = Some(End { at, status });
    }

    /// Returns the job as snapshots show it.
    pub(super) fn status(&self) -> Arc<JobStatus> {
        match &self.end {
            Some(end) => end.status.clone(),
            None => Arc::new(self.status_in(JobState::Running)),
        }
    }

    fn status_in(&self, state: JobState) -> JobStatus {
        JobStatus {
            kind: self.kind,
            service: self.service.clone(),
            state,
            step: self.step.clone(),
            done: self.parts.iter().map(|part| part.done).sum(),
            total: self.parts.iter().map(|part| part.total).sum(),
            error: self.error(),
            changes: match state {
                JobState::Running => Vec::new(),
                _ => self.changes(),
            },
            report: self.report(),
        }
    }
}
