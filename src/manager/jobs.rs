//! The jobs: what was asked for, and how far each job is.
//!
//! A job has a part for each service that it concerns. A part is done when its service has reached
//! the part's goal, or a newer goal that includes it. A part has failed when the generation that it
//! waits for was given up. A part is superseded when a newer command wants the opposite: a stop
//! instead of a start, or a start instead of a stop. A part of a service that has to stop, but
//! keeps sites for others until they are ready, ends as those others' parts do.
//!
//! Jobs outlive the manager: the next one goes on with them under the same numbers ([`SavedJobs`]).

mod job;
#[allow(clippy::module_inception)]
mod jobs;
mod part;

pub use jobs::{Jobs, SavedJobs};
pub use part::{Goal, NewPart, Progress};
