//! Why a command did not do what it was asked: the exit status, and what is printed.

use std::process::ExitCode;

use keystore_client::{Error, Reason};
use serde::Serialize;

use crate::args::Output;

/// What the exit status says. The numbers are documented and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Whoever reads stdout has closed it, having had enough: nothing is left to be done or said.
    Done = 0,
    Other = 1,
    Usage = 2,
    NoSuchKey = 3,
    /// Nothing was applied.
    Failed = 4,
    /// A write may be applied.
    Unknown = 5,
    Refused = 6,
    CannotConnect = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// In this form under `-o json`.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    #[serde(skip)]
    pub exit: Exit,
    pub reason: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed: Option<u32>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, reason: &str, message: impl Into<String>) -> Self {
        Self { exit, reason: reason.to_owned(), message: message.into(), acks: None, needed: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", message)
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(Exit::Other, "ERROR", message)
    }

    /// Of the machine that runs the command: its files and its terminal.
    pub(crate) fn local(what: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Other, "IO", format!("{what}: {error}"))
    }

    /// Of writing to stdout.
    pub(crate) fn stdout(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Done, "", ""),
            _ => Self::local("cannot write to stdout", error),
        }
    }

    pub(crate) fn print(&self, output: Output) {
        match output {
            _ if self.exit == Exit::Done => {}
            Output::Table => eprintln!("keystorectl: {}", self.message),
            Output::Json => {
                eprintln!("{}", serde_json::to_string(self).expect("strings and numbers are JSON"));
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            // What no node has seen is a mistake in what was typed.
            Error::BadRequest(detail)
                if detail.reason == Reason::INVALID_ARGUMENT && detail.needed.is_none() =>
            {
                Exit::Usage
            }
            Error::BadRequest(_) | Error::Refused(_) => Exit::Refused,
            Error::Connect(_) => Exit::CannotConnect,
            Error::Failed(_) => Exit::Failed,
            Error::Unknown(_) => Exit::Unknown,
            Error::DeadlineExceeded { sent_write: true, .. } => Exit::Unknown,
            Error::DeadlineExceeded { sent_write: false, .. } => Exit::Failed,
        };
        let detail = error.detail();
        Self {
            exit,
            reason: detail.reason.to_string(),
            message: error.to_string(),
            acks: detail.acks,
            needed: detail.needed,
        }
    }
}
