//! The parts of a job: what it is to do for each service.

use serde::{Deserialize, Serialize};

/// The goal of a part: the state that its service should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// All instances run this generation or a newer one.
    Running {
        /// The oldest generation that satisfies the goal.
        generation: u64,
    },
    /// No instance runs.
    Stopped,
}

/// How far a service is, as jobs need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Whether the service should run.
    pub running: bool,
    /// Whether the service has reached its desired state.
    pub converged: bool,
    /// The generation that the rollout of the service works toward.
    pub generation: u64,
    /// The number of instances that have reached their desired state.
    pub done: u32,
    /// The number of instances that should run, or that have to stop.
    pub total: u32,
    /// What the service is doing at the moment, as text for people.
    pub activity: String,
}

/// What a job is to do for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPart {
    service: String,
    /// The goal to wait for, or how the part has ended already.
    begin: Result<Goal, Outcome>,
    what: Option<String>,
}

impl NewPart {
    /// Makes a part that waits for a goal. `what` says what is done by then: `3 instances
    /// replaced`.
    pub fn wait(service: &str, goal: Goal, what: Option<String>) -> NewPart {
        NewPart {
            service: service.to_owned(),
            begin: Ok(goal),
            what,
        }
    }

    /// Returns true if the part waits for a goal.
    pub fn is_open(&self) -> bool {
        self.begin.is_ok()
    }

    /// Makes a part that is done already.
    pub fn done(service: &str, what: String) -> NewPart {
        NewPart {
            service: service.to_owned(),
            begin: Err(Outcome::Done),
            what: Some(what),
        }
    }

    /// Makes a part that has failed already. The error names the service.
    pub fn failed(service: &str, error: String) -> NewPart {
        NewPart {
            service: service.to_owned(),
            begin: Err(Outcome::failed(error)),
            what: None,
        }
    }
}

/// What a job has to do for one service, and what has become of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    /// The name of the service.
    pub(super) service: String,
    /// The state that the service should reach.
    pub(super) goal: Goal,
    /// The number of instances that have reached their desired state.
    pub(super) done: u32,
    /// The number of instances that should run, or that have to stop.
    pub(super) total: u32,
    /// What is done once the goal is reached.
    pub(super) what: Option<String>,
    /// What went wrong on the way to the goal. The part has failed once the goal is reached.
    #[serde(default)]
    fault: Option<String>,
    /// How the part has ended, if it has.
    pub(super) outcome: Option<Outcome>,
}

/// How a part has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// The goal is reached.
    Done,
    /// A newer command wants the opposite.
    Superseded,
    /// The goal was not reached, or something went wrong on the way. The report has what the
    /// instance has written, too.
    Failed { error: String, report: String },
}

impl Outcome {
    /// Makes a failure without any output of an instance.
    pub(super) fn failed(error: String) -> Outcome {
        Outcome::Failed {
            report: error.clone(),
            error,
        }
    }
}

impl From<NewPart> for Part {
    fn from(new: NewPart) -> Part {
        let (goal, outcome) = match new.begin {
            Ok(goal) => (goal, None),
            Err(outcome) => (Goal::Stopped, Some(outcome)),
        };
        Part {
            service: new.service,
            goal,
            done: 0,
            total: 0,
            what: new.what,
            fault: None,
            outcome,
        }
    }
}

impl Part {
    /// Takes in the progress of the service. Returns how the part has ended, if it has by that.
    pub(super) fn look(&mut self, progress: &Progress) -> Option<Outcome> {
        (self.done, self.total) = (progress.done, progress.total);
        let outcome = match self.goal {
            Goal::Running { .. } if !progress.running => Outcome::Superseded,
            Goal::Stopped if progress.running => Outcome::Superseded,
            // The service works toward an older generation. If the wanted one was given up,
            // `failed` ends this part.
            Goal::Running { generation } if progress.generation < generation => return None,
            _ if progress.converged => Outcome::Done,
            _ => return None,
        };
        Some(outcome)
    }

    /// Notes what went wrong on the way to the goal. The first fault counts.
    pub(super) fn note_fault(&mut self, error: &str) {
        self.fault.get_or_insert_with(|| error.to_owned());
    }

    /// Ends the part.
    pub(super) fn end(&mut self, outcome: Outcome) {
        self.outcome = Some(match (&self.fault, outcome) {
            (Some(error), Outcome::Done) => Outcome::failed(error.clone()),
            (_, outcome) => outcome,
        });
    }
}
