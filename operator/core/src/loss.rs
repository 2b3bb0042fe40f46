//! Which members are given up for good, and which voters are swapped because they are away.
//!
//! A member is given up because its volume is gone, or because it has been away for as long as the resource allows.
//! Invariants: whatever is given up, all that was acknowledged can be had from nodes that are left and in no doubt of what
//! they hold, and where it is only away, from nodes that serve in this very look; of those that are away, one is given up
//! at a time.

use std::collections::BTreeSet;

use keystore_core::id::NodeId;
use keystore_core::succession::Change;

use crate::absence::Absences;
use crate::members::Roster;
use crate::stage::Stage;
use crate::validate::ValidCluster;

/// A voter that is away for that long is swapped for a member that is there, and nothing is waited for without saying what a
/// person can do. A pod that restarts is back by then.
pub(crate) const AWAY_SECONDS: u32 = 60;

/// A stage without a change is a hold: nothing else has to wait for it.
pub(crate) fn plan_loss(valid: &ValidCluster, roster: &Roster<'_>, absences: &Absences) -> Option<Stage> {
    plan_loss_of_volumes(roster).or_else(|| plan_loss_of_absent(valid, roster, absences))
}

/// Members whose volume is gone count for nothing from now on.
fn plan_loss_of_volumes(roster: &Roster<'_>) -> Option<Stage> {
    let gone = roster.replaced();
    if gone.is_empty() {
        return None;
    }
    let pods = roster.pods(roster.ordinals(gone.iter().copied()));
    let doubting = roster.in_doubt();
    if roster.can_do_without(&gone, &doubting) {
        let message = format!("{pods} came back with an empty volume: what the old one held is given up");
        return Some(Stage::change("GivingUp", message, Change::Lose(gone)));
    }
    Some(Stage::short(
        "GivingUp",
        format!(
            "{pods} came back with an empty volume, and of some partitions too few copies are left to rebuild what it \
             held{}; nothing is given up: bring the volume back, or name what is lost for good with keystorectl recover",
            besides(roster, &gone, &doubting)
        ),
    ))
}

/// Of the members that have been away for too long the first that the others can do without.
fn plan_loss_of_absent(valid: &ValidCluster, roster: &Roster<'_>, absences: &Absences) -> Option<Stage> {
    let seconds = valid.replace_after_seconds?;
    let mut overdue = absences.overdue(seconds);
    overdue.retain(|node| !roster.layout.is_lost(*node));
    let (absent, doubting) = (roster.silent(), roster.in_doubt());
    let pods = roster.pods(roster.ordinals(overdue.iter().copied()));
    let have = if overdue.len() == 1 { "has" } else { "have" };
    let away = format!("{have} been away for longer than spec.replaceAfterSeconds ({seconds} s)");
    // Whoever else is silent may never be back either.
    if roster.can_do_without(&absent, &doubting) {
        let first = *overdue.first()?;
        let pod = roster.pods(roster.ordinals([first]));
        let message = format!(
            "{pod} has been away for longer than spec.replaceAfterSeconds ({seconds} s): what it holds is given up, and \
             rebuilt from the others"
        );
        return Some(Stage::change("GivingUp", message, Change::Lose(BTreeSet::from([first]))));
    }
    (!overdue.is_empty()).then(|| {
        let down = roster.pods(roster.ordinals(absent.iter().copied()));
        Stage::short(
            "GivingUp",
            format!(
                "{pods} {away}, and nothing is given up: without {down}, which do not serve, of some partitions too few \
                 copies are left to rebuild it{}; bring nodes back, or name what is lost for good with keystorectl recover",
                besides(roster, &absent, &doubting)
            ),
        )
    })
}

/// Whose damage is in the way, if that is.
fn besides(roster: &Roster<'_>, gone: &BTreeSet<NodeId>, doubting: &BTreeSet<NodeId>) -> String {
    if !roster.can_do_without(gone, &BTreeSet::new()) {
        return String::new();
    }
    let pods = roster.pods(roster.ordinals(doubting.difference(gone).copied()));
    format!(" (something at {pods} is damaged, and may be whole only there)")
}

/// Voters that are away, swapped for members that are there; `None` where there are no others.
pub(crate) fn plan_voters(roster: &Roster<'_>, absences: &Absences) -> Option<Change> {
    let away: BTreeSet<NodeId> = absences.away_for(AWAY_SECONDS).into_iter().collect();
    let count_away = |voters: &[NodeId]| voters.iter().filter(|voter| away.contains(voter)).count();
    let present = count_away(&roster.layout.voters);
    if present == 0 {
        return None;
    }
    let next = roster.layout.next_without(&Change::Voters, &roster.silent()).ok()?;
    (count_away(&next.voters) < present).then_some(Change::Voters)
}
