//! `layout history`: the last layouts, as one node has taken them up.

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use keystore_client::{Difference, History, HistoryEntry};
use serde::Serialize;

use crate::args::{Globals, Output};
use crate::failure::{Exit, Failure};
use crate::output::{print_json, print_line, table};
use crate::survey::{self, Answer};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HistoryReport {
    /// Who has taken them up.
    node: String,
    /// The newest at the end.
    layouts: Vec<Line>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    epoch: u64,
    incarnation: u64,
    phase: &'static str,
    /// RFC 3339, by the node's clock; `None` if nobody has noted it.
    taken_up: Option<String>,
    /// How many layouts were decided between the one before and this, and never came to this node.
    skipped: u64,
    /// `None` if the node does not know what the one before was.
    changes: Option<Vec<Change>>,
    /// Alike.
    partitions_moved: Option<u32>,
    members: u32,
    voters: u32,
}

#[derive(Serialize)]
struct Change {
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
}

/// Asks the nodes with the newest layout of those that were named, and tells what that one says which has seen most: who
/// has joined since knows less.
pub(super) async fn history(globals: &Globals) -> Result<(), Failure> {
    let survey = survey::ask(globals).await?;
    let members = survey.up_to_date().filter(|answer| answer.status.cluster.is_some());
    let histories = members.map(async |Answer { admin, status }| {
        Ok::<_, Failure>((status.name.clone(), admin.get_layout_history().await?))
    });
    let uninitialized =
        Failure::new(Exit::Refused, "NOT_INITIALIZED", "the cluster has not been initialised");
    let (node, history) = fullest(join_all(histories).await).unwrap_or(Err(uninitialized))?;
    let report = report(node, history.entries());
    match globals.output {
        Output::Json => print_json(&report),
        Output::Table => print_line(&report.text()),
    }
}

/// That of the node which knows of most layouts what they changed; a failure if there is nothing else.
fn fullest<E>(told: Vec<Result<(String, History), E>>) -> Option<Result<(String, History), E>> {
    let known = |history: &History| history.entries().filter(|entry| entry.changes.is_some()).count();
    told.into_iter().max_by_key(|told| told.as_ref().ok().map(|(_, history)| known(history)))
}

fn report<'a>(node: String, entries: impl Iterator<Item = &'a HistoryEntry>) -> HistoryReport {
    let mut before: Option<u64> = None;
    let layouts = entries.map(|entry| {
        let skipped = before.map_or(0, |before| entry.epoch.0.saturating_sub(before + 1));
        before = Some(entry.epoch.0);
        line(entry, skipped)
    });
    HistoryReport { layouts: layouts.collect(), node }
}

fn line(entry: &HistoryEntry, skipped: u64) -> Line {
    let at = |ms: u64| Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok();
    let changes = entry.changes.as_ref();
    Line {
        epoch: entry.epoch.0,
        incarnation: entry.incarnation.number,
        phase: if entry.is_joint { "joint" } else { "stable" },
        taken_up: entry.taken_up_ms.and_then(at).map(|time| time.to_string()),
        skipped,
        changes: changes.map(|changes| changes.differences.iter().map(change).collect()),
        partitions_moved: changes.map(|changes| changes.partitions_moved),
        members: entry.members,
        voters: entry.voters,
    }
}

fn change(difference: &Difference) -> Change {
    let (what, count) = match *difference {
        Difference::First => ("first", None),
        Difference::Recovered { salvaged } => ("recover", Some(salvaged)),
        Difference::Begun => ("begin", None),
        Difference::Finished => ("finish", None),
        Difference::Aborted => ("abort", None),
        Difference::Admitted(count) => ("admit", Some(count)),
        Difference::Altered(count) => ("alter", Some(count)),
        Difference::Lost(count) => ("lose", Some(count)),
        Difference::Dismissed(count) => ("dismiss", Some(count)),
        Difference::Voters => ("voters", None),
        Difference::Keyspaces(count) => ("keyspaces", Some(count)),
    };
    Change { what, count }
}

impl HistoryReport {
    fn text(&self) -> String {
        let header = ["EPOCH", "INC", "PHASE", "TAKEN UP", "CHANGE", "MOVED", "MEMBERS", "VOTERS"];
        let rows: Vec<_> = self.layouts.iter().flat_map(Line::rows).collect();
        table(&header, &rows)
    }
}

impl Line {
    /// One, and one before it for those that were skipped.
    fn rows(&self) -> Vec<Vec<String>> {
        let first = self.epoch - self.skipped;
        let skipped = (self.skipped > 0).then(|| {
            let epochs =
                if self.skipped == 1 { first.to_string() } else { format!("{first}-{}", self.epoch - 1) };
            vec![epochs, String::new(), String::new(), String::new(), "skipped".to_owned()]
        });
        let row = vec![
            self.epoch.to_string(),
            self.incarnation.to_string(),
            self.phase.to_owned(),
            self.taken_up.clone().unwrap_or_else(unknown),
            self.change(),
            self.partitions_moved.map_or_else(unknown, |moved| moved.to_string()),
            self.members.to_string(),
            self.voters.to_string(),
        ];
        skipped.into_iter().chain([row]).collect()
    }

    /// begin, voters
    fn change(&self) -> String {
        let Some(changes) = &self.changes else { return unknown() };
        let named = |Change { what, count }: &Change| match count {
            Some(count) => format!("{what} {count}"),
            None => (*what).to_owned(),
        };
        changes.iter().map(named).collect::<Vec<_>>().join(", ")
    }
}

fn unknown() -> String {
    "?".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_client::fake::{first_layout, member};
    use keystore_client::{Changes, Epoch, Layout};

    #[test]
    fn who_has_just_joined_is_not_the_one_to_ask() {
        let layout = |epoch| Layout { epoch: Epoch(epoch), ..first_layout((1..=3).map(member).collect(), 3) };
        let history = |known: &[bool]| {
            let mut history = History::default();
            for (epoch, is_known) in (1..).zip(known) {
                history.note(HistoryEntry::new(&layout(epoch), is_known.then(Changes::of_first), None));
            }
            history
        };
        let joined = || Ok(("joined".to_owned(), history(&[false, false, false, true])));
        let old = || Ok(("old".to_owned(), history(&[true, true])));
        for told in [vec![joined(), Err(()), old()], vec![old(), joined(), Err(())]] {
            assert_eq!(fullest(told).unwrap().unwrap().0, "old");
        }
        assert_eq!(fullest(vec![Err(())]), Some(Err(())));
        assert_eq!(fullest::<()>(Vec::new()), None);
    }

    #[test]
    fn what_a_node_has_skipped_is_told_and_what_it_does_not_know_is_not_made_up() {
        let layout = |epoch| Layout { epoch: Epoch(epoch), ..first_layout((1..=3).map(member).collect(), 3) };
        let entries = [(4, None), (5, Some(1_700_000_000_000)), (7, None), (10, None)]
            .map(|(epoch, at_ms)| HistoryEntry::new(&layout(epoch), None, at_ms));
        let report = report("node-1".to_owned(), entries.iter());
        let skipped: Vec<_> = report.layouts.iter().map(|line| line.skipped).collect();
        assert_eq!(skipped, [0, 0, 1, 2]);
        let expected = "\
EPOCH  INC  PHASE   TAKEN UP              CHANGE   MOVED  MEMBERS  VOTERS
4      1    stable  ?                     ?        ?      3        3
5      1    stable  2023-11-14T22:13:20Z  ?        ?      3        3
6                                         skipped
7      1    stable  ?                     ?        ?      3        3
8-9                                       skipped
10     1    stable  ?                     ?        ?      3        3";
        assert_eq!(report.text(), expected);
    }
}
