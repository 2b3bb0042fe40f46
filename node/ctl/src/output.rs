//! How results are printed.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Prints bytes as they are.
pub(crate) fn print_raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::stdout(&error))
}

pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    print_raw(format!("{line}\n").as_bytes())
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| not_json(&error))?;
    print_line(&text)
}

/// A JSON list that is printed as its items come, one a line.
pub(crate) struct List {
    separator: &'static str,
}

impl List {
    pub(crate) fn begin() -> Result<Self, Failure> {
        print_raw(b"[")?;
        Ok(Self { separator: "\n" })
    }

    pub(crate) fn print(&mut self, item: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(item).map_err(|error| not_json(&error))?;
        print_raw(format!("{}{text}", self.separator).as_bytes())?;
        self.separator = ",\n";
        Ok(())
    }

    pub(crate) fn end(self) -> Result<(), Failure> {
        print_line("\n]")
    }
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::other(error.to_string())
}

/// Columns as wide as their widest cell, two spaces between, none behind the last.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// With three digits or four, as people read it: 850, 12.3k, 4.56M.
pub(crate) fn bytes(bytes: f64) -> String {
    let units = ["", "k", "M", "G"];
    let (mut scaled, mut unit) = (bytes, 0);
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let digits = match scaled {
        _ if unit == 0 => 0,
        scaled if scaled < 9.995 => 2,
        scaled if scaled < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{}", units.get(unit).unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["demo-0".to_owned(), "serving".to_owned()], vec!["é".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "STATE"], &rows), "NAME    STATE\ndemo-0  serving\né");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (given, text) in [
            (0.0, "0"),
            (850.4, "850"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (12_345.0, "12.3k"),
            (999_499.0, "999k"),
            (4_560_000.0, "4.56M"),
            (5e12, "5000G"),
        ] {
            assert_eq!(bytes(given), text, "{given}");
        }
    }
}
