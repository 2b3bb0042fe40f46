//! What happened in a run, line by line: kept only when somebody is going to read it, since a seed can be run again.

use std::fmt::{self, Display, Write as _};
use std::path::PathBuf;

use keystore_core::effect::{ClientRequest, Event};
use keystore_core::partition::RecordKey;
use xxhash_rust::xxh3::xxh3_64;

/// An event without what every frame repeats.
pub(crate) struct Brief<'a>(pub(crate) &'a Event);

impl Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Frame { link, header, messages } => {
                let (node, generation) = (header.from.0[0] - 1, header.generation);
                write!(f, "from {node} ({link:?}, generation {generation}): {messages:?}")
            }
            Event::LinkOffered { link, hello } => {
                let (node, generation) = (hello.header.from.0[0] - 1, hello.header.generation);
                write!(f, "{link:?} offered by {node}, generation {generation}")
            }
            Event::Client(request) => {
                let ClientRequest { id, operation, consistency, durability, deadline } = request;
                let (id, at) = (id.0, deadline.mono_ms);
                write!(f, "asked ({id}, {consistency:?}, {durability:?}, until {at}) {operation:?}")
            }
            event => write!(f, "{event:?}"),
        }
    }
}

/// How many lines of a failed run are printed; all of them are in the file.
const LINES_SHOWN: usize = 60;

#[derive(Debug, Default)]
pub(crate) struct Trace {
    is_kept: bool,
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn new(is_kept: bool) -> Self {
        Self { is_kept, lines: Vec::new() }
    }

    pub(crate) fn line(&mut self, at_ms: u64, what: impl Display) {
        if self.is_kept {
            self.lines.push(format!("{at_ms:>6} {what}"));
        }
    }

    /// Of all lines: two runs with one hash did the same, to the byte.
    pub(crate) fn hash(&self) -> u64 {
        xxh3_64(self.lines.join("\n").as_bytes())
    }

    /// The last lines, up to a moment, that speak of this key or of nothing but the world.
    pub(crate) fn excerpt(&self, key: Option<&RecordKey>, until_ms: u64) -> String {
        let name = key.map(|key| format!("{key:?}"));
        let is_of_the_world = |line: &String| !line.contains(": ");
        let concerns = |line: &&String| match &name {
            Some(name) => line.contains(name) || is_of_the_world(line),
            None => is_of_the_world(line),
        };
        let is_before = |line: &&String| {
            let at = line.split_whitespace().next().and_then(|at| at.parse::<u64>().ok());
            at.is_none_or(|at| at <= until_ms)
        };
        let mut lines: Vec<_> = self.lines.iter().filter(concerns).filter(is_before).collect();
        lines.drain(..lines.len().saturating_sub(LINES_SHOWN));
        lines.iter().fold(String::new(), |mut out, line| {
            let _ = writeln!(out, "{}", line.get(..400).unwrap_or(line));
            out
        })
    }

    /// Writes the whole trace to a file and says where it is.
    pub(crate) fn write(&self, seed: u64) -> std::io::Result<PathBuf> {
        let path = std::env::temp_dir().join(format!("keystore-sim-{seed}.trace"));
        std::fs::write(&path, self.lines.join("\n"))?;
        Ok(path)
    }
}
