//! Why the nodes can decide nothing, or nothing more, whatever is proposed.

use std::collections::BTreeSet;

use keystore_core::id::NodeId;
use keystore_core::layout::Member;

use crate::absence::Absences;
use crate::hold::{Hold, HoldReason};
use crate::loss::AWAY_SECONDS;
use crate::members::Roster;

/// Why no layout can be decided at all, if it cannot: whatever is proposed waits for a majority of those who vote. That some
/// restart says nothing.
pub(crate) fn find_lack_of_voters(roster: &Roster<'_>, absences: &Absences) -> Option<Hold> {
    let mut missing: BTreeSet<_> = absences.away_for(AWAY_SECONDS).into_iter().collect();
    missing.extend(roster.replaced());
    missing.retain(|node| roster.layout.voters.contains(node));
    let voters = roster.layout.voters.len();
    let left = voters - missing.len();
    (left * 2 <= voters && !roster.is_behind()).then(|| {
        let pods = roster.pods(roster.ordinals(missing));
        let message = format!(
            "nothing about members and data can be decided: of {voters} nodes that vote {left} are left without {pods}, and \
             it takes a majority; bring nodes back, or name what is lost for good with keystorectl recover"
        );
        Hold { reason: HoldReason::Undecidable, message }
    })
}

/// Why nothing goes on after a recovery that some of those who are left have accepted, and others that answer have not.
pub(crate) fn find_half_accepted(roster: &Roster<'_>) -> Option<Hold> {
    let layout = roster.layout;
    let is_recovery = layout.incarnation.number > 1;
    if !is_recovery || roster.observed.layout.as_ref().is_none_or(|held| held.decided) {
        return None;
    }
    let answers = |member: &&Member| !member.is_lost && roster.answer_at_home(member.node).is_some();
    let present = layout.members.iter().filter(answers).map(|member| member.node);
    let holds = |node: &NodeId| roster.answer_of(*node).is_some_and(|answer| answer.holds(layout));
    let (accepted, others): (Vec<_>, Vec<_>) = present.partition(holds);
    (!others.is_empty()).then(|| {
        let (accepted, others) =
            (roster.pods(roster.ordinals(accepted)), roster.pods(roster.ordinals(others)));
        let message = format!(
            "{accepted} accepted a recovery that {others} did not, and serves nobody before all have: run keystorectl recover \
             again"
        );
        Hold { reason: HoldReason::Undecidable, message }
    })
}
