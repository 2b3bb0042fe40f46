//! The partitions of each node as a line of text: what it holds, what is to come, what is to go.
//!
//! On a terminal each picture takes the place of the one before; elsewhere only those are printed that show a change.

use std::time::Duration;

use keystore_client::{Layout, Member, NodeStatus, Partition};

const HOLDS: char = '█';
const COMES: char = '▒';
const GOES: char = '░';
const NOTHING: char = '·';

pub(super) struct Picture {
    pub elapsed: Duration,
    pub wanted: i32,
    /// What the operator does just now.
    pub operation: Option<String>,
    pub acknowledged: usize,
    pub failed: usize,
    pub layout: Layout,
    /// Of the nodes that have answered.
    pub statuses: Vec<NodeStatus>,
}

impl Picture {
    /// What changes all the time.
    fn head(&self) -> String {
        let Self { elapsed, acknowledged, failed, .. } = self;
        format!("{:>4} s   {acknowledged} writes acknowledged, {failed} requests failed", elapsed.as_secs())
    }

    /// What changes when something happens.
    fn body(&self) -> Vec<String> {
        let phase = if self.layout.is_joint() { "joint" } else { "stable" };
        let operation = self.operation.as_deref().unwrap_or("at rest");
        let mut lines = vec![
            format!("{} replicas wanted; epoch {}, {phase}; {operation}", self.wanted, self.layout.epoch.0),
            format!("{HOLDS} holds   {COMES} is to come   {GOES} is to go"),
        ];
        let mut members: Vec<_> = self.layout.members.iter().collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        lines.extend(members.into_iter().map(|member| self.line(member)));
        lines
    }

    fn line(&self, member: &Member) -> String {
        let strip: String =
            self.layout.partitions.all().map(|partition| self.mark(member, partition)).collect();
        let status = self.statuses.iter().find(|status| status.node == member.node);
        let progress = match status.map(|status| &status.transfer) {
            Some(transfer) if self.layout.is_joint() && transfer.partitions > 0 => {
                format!("  {} of {} taken over", transfer.partitions_done, transfer.partitions)
            }
            Some(_) => String::new(),
            None => "  does not answer".to_owned(),
        };
        format!(
            "{:<8} {:<7} {strip} {:>3}{progress}",
            member.name,
            member.zone,
            self.layout.owned(member.node)
        )
    }

    fn mark(&self, member: &Member, partition: Partition) -> char {
        let is_held = self.layout.source_ring().is_replica(partition, member.node);
        let is_to_be = self.layout.ring().is_replica(partition, member.node);
        match (is_held, is_to_be) {
            (true, true) => HOLDS,
            (false, true) => COMES,
            (true, false) => GOES,
            (false, false) => NOTHING,
        }
    }
}

/// Where pictures go.
pub(super) struct Screen {
    is_terminal: bool,
    shown: Vec<String>,
}

impl Screen {
    pub(super) fn new(is_terminal: bool) -> Self {
        Self { is_terminal, shown: Vec::new() }
    }

    pub(super) fn show(&mut self, picture: &Picture) {
        print!("{}", self.text(&picture.head(), picture.body()));
    }

    fn text(&mut self, head: &str, body: Vec<String>) -> String {
        let before = std::mem::replace(&mut self.shown, body);
        if !self.is_terminal {
            let is_new = before != self.shown;
            return if is_new { format!("{head}\n{}\n\n", self.shown.join("\n")) } else { String::new() };
        }
        // Back to where the picture before began, and away with all of it: it may have been longer.
        let back =
            if before.is_empty() { String::new() } else { format!("\x1b[{}F\x1b[J", before.len() + 1) };
        // Cut off what does not fit: wrapped, a line would be two.
        format!("{back}\x1b[?7l{head}\n{}\n\x1b[?7h", self.shown.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn on_a_terminal_a_picture_takes_the_place_of_the_one_before() {
        let mut screen = Screen::new(true);
        assert_eq!(screen.text("0 s", lines("a b c")), "\x1b[?7l0 s\na\nb\nc\n\x1b[?7h");
        assert_eq!(screen.text("1 s", lines("a b")), "\x1b[4F\x1b[J\x1b[?7l1 s\na\nb\n\x1b[?7h");
        assert_eq!(screen.text("2 s", lines("a b")), "\x1b[3F\x1b[J\x1b[?7l2 s\na\nb\n\x1b[?7h");
    }

    #[test]
    fn elsewhere_only_changes_are_printed() {
        let mut screen = Screen::new(false);
        assert_eq!(screen.text("0 s", lines("a b")), "0 s\na\nb\n\n");
        assert_eq!(screen.text("1 s", lines("a b")), "");
        assert_eq!(screen.text("2 s", lines("a c")), "2 s\na\nc\n\n");
    }
}
