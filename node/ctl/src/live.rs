//! How something goes, while it goes: one line on stderr that is rewritten where that is a terminal, lines now and then
//! where it is not. Results are not shown here.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// What is told as it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Live {
    Nothing,
    /// Each figure on a line of its own.
    Lines,
    /// Figures on one line, each in place of the one before.
    Rewritten,
}

/// Begins the line anew: its begin, what is there erased, and what is longer than the terminal is wide cut off.
const REWRITE: &str = "\r\x1b[2K\x1b[?7l";
/// Longer lines are continued again.
const REWRITTEN: &str = "\x1b[?7h";
const ERASE: &str = "\r\x1b[2K";

impl Live {
    pub(crate) fn choose(quiet: bool) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        match io::stderr().is_terminal() {
            _ if quiet => Self::Nothing,
            true if !is_dumb => Self::Rewritten,
            _ => Self::Lines,
        }
    }

    /// How often there are figures.
    pub(crate) fn period(self) -> Duration {
        match self {
            Self::Rewritten => Duration::from_secs(1),
            Self::Nothing | Self::Lines => Duration::from_secs(5),
        }
    }

    /// Figures, which the next ones replace.
    pub(crate) fn show(self, figures: &str) {
        match self {
            Self::Nothing => {}
            Self::Lines => write(&format!("{figures}\n")),
            Self::Rewritten => write(&format!("{REWRITE}{figures}{REWRITTEN}")),
        }
    }

    /// A line that stays, in place of the figures.
    pub(crate) fn say(self, line: &str) {
        match self {
            Self::Nothing => {}
            Self::Lines => write(&format!("{line}\n")),
            Self::Rewritten => write(&format!("{ERASE}{line}\n")),
        }
    }

    /// Removes the figures, for something else to be printed.
    pub(crate) fn clear(self) {
        if self == Self::Rewritten {
            write(ERASE);
        }
    }
}

/// If nobody reads it, the result still counts.
fn write(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
