//! The error of a command of smoothctl: what to say, and how to exit.

use std::process::ExitCode;

use super::screen;

/// Why a command of smoothctl failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct CtlError {
    message: String,
    status: u8,
}

impl CtlError {
    /// Makes an error with its exit status, one of [`crate::cli::exit`] or 1, and its message.
    pub(super) fn new(status: u8, message: impl Into<String>) -> CtlError {
        CtlError {
            message: message.into(),
            status,
        }
    }

    /// Adds what to do about the error.
    pub(super) fn with_cure(self, cure: &str) -> CtlError {
        CtlError {
            message: format!("{}; {cure}", self.message),
            ..self
        }
    }

    /// Returns the exit status.
    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// Prints the message and returns the exit status.
    pub(super) fn report(&self) -> ExitCode {
        screen::print_error(&format!("smoothctl: {}", self.message.trim_end()));
        ExitCode::from(self.status)
    }
}
