//! Tables for terminals and for markdown, and how figures read in them. Pure.

use crate::meter::DISTURBANCE_MAX;

/// Rows of text below heads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    pub(crate) title: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, heads: &[&str]) -> Self {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Self { title: title.to_owned(), heads, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Columns as wide as their widest cell; figures stand at the right.
    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.heads]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let line = |row: &Vec<String>| {
            let cells = row.iter().enumerate().map(|(column, cell)| match self.is_text(column) {
                true => format!("{cell:<width$}", width = width(column)),
                false => format!("{cell:>width$}", width = width(column)),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        let heads = self.heads.iter().map(|head| head.to_ascii_uppercase()).collect();
        let lines: String = [&heads].into_iter().chain(&self.rows).map(line).collect();
        format!("{}\n{lines}\n", self.title)
    }

    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = (0..self.heads.len()).map(|column| if self.is_text(column) { "---" } else { "---:" });
        let rule: Vec<_> = rule.map(str::to_owned).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("**{}**\n\n{}{}{rows}\n", self.title, line(&self.heads), line(&rule))
    }

    /// Columns that begin with a letter are words.
    fn is_text(&self, column: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.filter_map(|cell| cell.chars().next()).any(char::is_alphabetic)
    }
}

/// With thousands apart.
pub(crate) fn number(figure: f64, decimals: usize) -> String {
    let text = format!("{figure:.decimals$}");
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("-", digits));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut out = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    format!("{sign}{out}{fraction}")
}

pub(crate) fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
}

pub(crate) fn mib(bytes: f64) -> String {
    number(bytes / f64::from(1 << 20), 0)
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A figure that something else has disturbed says so.
pub(crate) fn marked(what: &str, disturbance: f64) -> String {
    match disturbance > DISTURBANCE_MAX {
        true => format!("{what} (disturbed)"),
        false => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_in_a_terminal_and_as_markdown() {
        let mut table = Table::new("What", &["name", "per s"]);
        table.row(["a".to_owned(), number(1_234.5, 0)]);
        table.row(["longer".to_owned(), number(7.0, 0)]);
        assert_eq!(table.text(), "What\nNAME    PER S\na       1,234\nlonger      7\n\n");
        assert_eq!(
            table.markdown(),
            "**What**\n\n| name | per s |\n| --- | ---: |\n| a | 1,234 |\n| longer | 7 |\n\n"
        );
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        let check = |figure, decimals, text| assert_eq!(number(figure, decimals), text);
        check(0.0, 0, "0");
        check(999.0, 0, "999");
        check(1_000.0, 0, "1,000");
        check(1_234_567.89, 1, "1,234,567.9");
        check(-1_234.0, 0, "-1,234");
        check(0.256, 2, "0.26");
    }

    #[test]
    fn only_what_was_disturbed_is_marked() {
        assert_eq!(marked("put", DISTURBANCE_MAX), "put");
        assert_eq!(marked("put", DISTURBANCE_MAX + 0.01), "put (disturbed)");
    }
}
