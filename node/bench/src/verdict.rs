//! What was measured beside what it has to be. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::table::{Table, marked};

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    pub(crate) what: String,
    /// Absent where nothing came of it, which meets nothing.
    pub(crate) measured: Option<f64>,
    pub(crate) bound: Bound,
    pub(crate) is_met: bool,
    /// What others used meanwhile, as a share of one core.
    pub(crate) disturbance: f64,
}

impl Verdict {
    pub(crate) fn new(what: impl Into<String>, measured: Option<f64>, bound: Bound) -> Self {
        let is_met = measured.is_some_and(|measured| bound.holds(measured));
        Self { what: what.into(), measured, bound, is_met, disturbance: 0.0 }
    }

    pub(crate) fn under(self, disturbance: f64) -> Self {
        Self { disturbance, ..self }
    }

    pub(crate) fn figure(&self) -> String {
        self.measured.map_or_else(|| "–".to_owned(), shown)
    }

    pub(crate) fn word(&self) -> &'static str {
        if self.is_met { "PASS" } else { "FAIL" }
    }
}

pub(crate) fn table(verdicts: &[Verdict]) -> Table {
    let mut table = Table::new("Targets", &["what", "bound", "measured", ""]);
    for verdict in verdicts {
        table.row([
            marked(&verdict.what, verdict.disturbance),
            verdict.bound.to_string(),
            verdict.figure(),
            verdict.word().to_owned(),
        ]);
    }
    table
}

impl Bound {
    pub(crate) fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound,
            Self::AtMost(bound) => measured <= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {}", shown(*bound)),
            Self::AtMost(bound) => write!(f, "≤ {}", shown(*bound)),
        }
    }
}

/// Two digits, and more of what is small: 0 is only what is nothing.
fn shown(figure: f64) -> String {
    match figure {
        0.0 => "0".to_owned(),
        small if small.abs() < 0.1 => format!("{small:.4}"),
        figure => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_itself_is_met_and_what_was_not_measured_never_is() {
        let check = |measured, bound, word| assert_eq!(Verdict::new("it", measured, bound).word(), word);
        check(Some(0.9), Bound::AtLeast(0.9), "PASS");
        check(Some(0.89), Bound::AtLeast(0.9), "FAIL");
        check(Some(1.5), Bound::AtMost(1.5), "PASS");
        check(Some(1.51), Bound::AtMost(1.5), "FAIL");
        check(Some(f64::NAN), Bound::AtMost(1.5), "FAIL");
        check(None, Bound::AtMost(1.5), "FAIL");
        check(None, Bound::AtLeast(0.0), "FAIL");
    }

    #[test]
    fn a_bound_reads_as_people_write_it() {
        assert_eq!(Bound::AtLeast(2.5).to_string(), "≥ 2.50");
        assert_eq!(Bound::AtMost(0.4).to_string(), "≤ 0.40");
        assert_eq!(Bound::AtMost(0.0).to_string(), "≤ 0");
        assert_eq!(Verdict::new("it", Some(0.0042), Bound::AtMost(0.001)).figure(), "0.0042");
        assert_eq!(Verdict::new("it", None, Bound::AtMost(0.001)).figure(), "–");
    }
}
