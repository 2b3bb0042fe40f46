//! Waits until a move has ended: shows how far it is, and has its end decided when the nodes wait for nothing any more.
//!
//! Whatever a proposal of the end came to, the layouts that nodes have say how it stands; so nothing here depends on an
//! answer that may get lost, and somebody else may end the move as well.

use std::time::Duration;

use keystore_client::{Change, Layout, NodeStatus, Phase};
use tokio::time::{Instant, sleep_until};

use super::Bounds;
use super::decide::{decide, nobody};
use crate::failure::{Exit, Failure};
use crate::survey::Survey;
use crate::transfer::{Progress, phase_name};

const PERIOD: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long no node at all may answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How a move stands, by the layout in force.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Moves,
    Ended,
    Aborted,
    /// The data is where this move would not have brought it, nor where it was.
    Elsewhere,
}

/// Returns the layout that the move has ended with. `bytes_before` had been received before it began.
pub(super) async fn until_it_ends(
    survey: &mut Survey,
    moving: Layout,
    bytes_before: u64,
    bounds: &Bounds,
) -> Result<Layout, Failure> {
    let mut now = moving.clone();
    let mut heard_at = Instant::now();
    loop {
        let next_look = Instant::now() + PERIOD;
        survey.ask_again(ANSWER_TIMEOUT).await;
        if !survey.answers.is_empty() {
            heard_at = Instant::now();
        }
        now = newest(survey, now).await;
        match standing(&moving, &now) {
            Standing::Moves => {}
            Standing::Ended => return Ok(now),
            Standing::Aborted => return Err(ended_otherwise(&now, "was aborted by somebody else")),
            Standing::Elsewhere => {
                return Err(ended_otherwise(&now, "was followed by changes of somebody else"));
            }
        }
        let mut waits_for = show(survey, &now, bytes_before, bounds);
        if waits_for.is_none() {
            match finish(survey, &now, bounds).await {
                Ok(layout) => return Ok(layout),
                Err(failure) => waits_for = Some(failure.message),
            }
        }
        if heard_at.elapsed() > SILENCE_MAX {
            return Err(nobody(survey));
        }
        if bounds.until.is_some_and(|until| Instant::now() >= until) {
            return Err(still_moving(&now, &waits_for.unwrap_or_default()));
        }
        match bounds.until {
            Some(until) => sleep_until(next_look.min(until)).await,
            None => sleep_until(next_look).await,
        }
    }
}

/// The newest layout, asked for only if it is another one than is known. What cannot be asked now is asked later.
async fn newest(survey: &Survey, known: Layout) -> Layout {
    let Some(newest) = survey.newest().filter(|newest| newest.status.epoch > known.epoch) else {
        return known;
    };
    match newest.admin.get_layout().await {
        Ok(Some((layout, _))) if layout.epoch > known.epoch => layout,
        Ok(_) | Err(_) => known,
    }
}

fn standing(moving: &Layout, now: &Layout) -> Standing {
    if now.is_moving() && now.phase_since == moving.phase_since {
        return Standing::Moves;
    }
    let Phase::Joint { from, to } = &moving.phase else { return Standing::Ended };
    match now.source_ring() {
        ring if ring == to => Standing::Ended,
        ring if ring == from => Standing::Aborted,
        _ => Standing::Elsewhere,
    }
}

fn ended_otherwise(now: &Layout, how: &str) -> Failure {
    let message = format!("the move {how}: epoch {}, {}", now.epoch, phase_name(now));
    Failure::new(Exit::Refused, "MOVE_ENDED", message)
}

fn still_moving(now: &Layout, waits_for: &str) -> Failure {
    let message = format!("data still moves, with epoch {}: {waits_for}", now.epoch);
    Failure::new(Exit::Other, "STILL_MOVING", message)
}

/// What the move waits for.
fn show(survey: &Survey, now: &Layout, bytes_before: u64, bounds: &Bounds) -> Option<String> {
    let statuses = survey.answers.iter().map(|answer| &answer.status);
    let progress = Progress::of(now, statuses)?;
    let waits_for = progress.waits_for.as_ref().map(|problem| now.with_names(problem));
    let missing = waits_for.as_ref().map_or_else(String::new, |problem| format!("; {problem}"));
    bounds.live.show(&format!("{}{missing}", progress.line(bytes_before)));
    waits_for
}

/// Has the end decided by a node that waits for nothing. What is refused is proposed again at the next look: it was
/// missing something that others know.
async fn finish(survey: &Survey, now: &Layout, bounds: &Bounds) -> Result<Layout, Failure> {
    let is_ready = |status: &NodeStatus| status.epoch == now.epoch && status.transfer.waits_for.is_none();
    let ready =
        survey.answers.iter().find(|answer| is_ready(&answer.status)).ok_or_else(|| nobody(survey))?;
    let next = now.next_without(&Change::Finish, &survey.away());
    let next = next.map_err(|error| Failure::new(Exit::Refused, "LAYOUT_REFUSED", error.to_string()))?;
    let left = bounds.until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.map_or(bounds.proposal_timeout, |left| left.min(bounds.proposal_timeout));
    decide(&ready.admin, (now, &next), timeout).await?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_client::fake::{first_layout, member};

    #[test]
    fn how_a_move_stands_is_seen_from_the_layout_in_force() {
        let first = first_layout((1..=3).map(member).collect(), 2);
        let begin = |layout: &Layout, members: &[u8]| {
            let members = members.iter().map(|n| member(*n)).collect();
            layout.next(&Change::Move { members, replication_factor: 2 }).unwrap()
        };
        let then = |layout: &Layout, change: Change| layout.next(&change).unwrap();
        let moving = begin(&first, &[1, 2]);
        let ended = then(&moving, Change::Finish);
        let aborted = then(&moving, Change::Abort);
        let dismissed = then(&ended, Change::Dismiss([member(3).node].into()));
        let elsewhere = then(&begin(&ended, &[1, 3]), Change::Finish);
        let admitted = then(&moving, Change::Admit(vec![member(4)]));
        for (now, expected) in [
            (&moving, Standing::Moves),
            (&admitted, Standing::Moves),
            (&ended, Standing::Ended),
            (&dismissed, Standing::Ended),
            (&begin(&ended, &[1, 3]), Standing::Ended),
            (&aborted, Standing::Aborted),
            (&begin(&aborted, &[1, 3]), Standing::Aborted),
            (&elsewhere, Standing::Elsewhere),
        ] {
            assert_eq!(standing(&moving, now), expected, "{now:?}");
        }
    }
}
