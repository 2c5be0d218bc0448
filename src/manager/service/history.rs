//! The history of a service: counters and facts that outlive its instances.

use serde::{Deserialize, Serialize};

use crate::status::{FailureReport, LastError, Moment, RefusedChange};

/// The history of a service, which outlives its instances and the manager.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    /// Whether all instances have been ready at the same time since the service was started.
    pub(super) came_up: bool,
    /// The newest generation with which all instances were ready.
    pub(super) finished: u64,
    /// The newest generation that was ever asked for.
    pub(super) last_generation: u64,
    /// The newest version that was ever deployed.
    pub(super) last_version: u64,
    /// The newest generation that was given up because its executable was still being written.
    #[serde(default)]
    pub(super) untried: Option<u64>,
    /// How many ready instances have ended without being told to stop.
    pub(super) crashes: u32,
    /// The requests of instances that have ended.
    pub(super) past_requests: u64,
    /// The last error of the service.
    pub(super) last_error: Option<SavedFailure>,
    /// The change on disk that was refused and is still there.
    #[serde(default)]
    pub(super) refused: Option<SavedRefusal>,
}

/// A change on disk that was not applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedRefusal {
    /// When the change was refused.
    pub(super) at: Moment,
    /// Why the change was refused, and what to do about it.
    pub(super) message: String,
    /// What was changed.
    pub(super) subject: ChangeSubject,
}

impl SavedRefusal {
    /// Returns the refusal as snapshots show it.
    pub(super) fn status(&self) -> RefusedChange {
        RefusedChange {
            at: self.at,
            message: self.message.clone(),
        }
    }
}

/// What a change on disk is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeSubject {
    /// The file of the service, or what its instances run.
    Files,
    /// The certificate of the service.
    Certificate,
}

/// An error of a service, with what its instance has written. Only the manager's own user can read
/// the file that this is saved in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "AnyFailure")]
pub(super) struct SavedFailure {
    /// The time of the error.
    pub(super) at: Moment,
    /// What went wrong, without output of the instance.
    pub(super) message: String,
    /// The last lines that the instance has written, each with its source.
    pub(super) output: Vec<String>,
}

impl SavedFailure {
    /// Returns the error as snapshots show it.
    pub(super) fn status(&self) -> LastError {
        LastError {
            at: self.at.0,
            message: self.message.clone(),
            has_output: !self.output.is_empty(),
            report: FailureReport::new(&self.message, &self.output),
        }
    }
}

/// An error as this or an earlier smoothserve has saved it.
#[derive(Deserialize)]
struct AnyFailure {
    at: Moment,
    message: String,
    output: Option<Vec<String>>,
}

impl From<AnyFailure> for SavedFailure {
    fn from(saved: AnyFailure) -> SavedFailure {
        let (message, output) = match saved.output {
            Some(output) => (saved.message, output),
            // Earlier versions wrote the output behind the message, each line in a line of its own.
            None => {
                let mut lines = saved.message.lines();
                let message = lines.next().unwrap_or_default().to_owned();
                (message, lines.map(|line| line.trim().to_owned()).collect())
            }
        };
        SavedFailure {
            at: saved.at,
            message,
            output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_an_earlier_version_saved_with_the_message_is_kept_apart() {
        let old = r#"{"at":1.5,"message":"shop/1 exited\n  log: one\n  log: two"}"#;
        let failure: SavedFailure = serde_json::from_str(old).unwrap();
        assert_eq!(failure.message, "shop/1 exited");
        assert_eq!(failure.output, ["log: one", "log: two"]);
        let saved = serde_json::to_string(&failure).unwrap();
        assert_eq!(
            serde_json::from_str::<SavedFailure>(&saved).unwrap(),
            failure
        );
        assert!(
            !serde_json::to_string(&failure.status())
                .unwrap()
                .contains("log:")
        );
        assert!(failure.status().report.text().ends_with("\n  log: two"));
    }
}
