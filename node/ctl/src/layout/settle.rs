//! Waits until new members are ones for everybody: each has acknowledged the layout, and is linked to all others.

use std::time::Duration;

use keystore_client::{Layout, NodeStatus};
use tokio::time::{Instant, sleep};

use crate::failure::{Exit, Failure};
use crate::survey::Survey;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn until_acknowledged(
    survey: &mut Survey,
    layout: &Layout,
    until: Instant,
) -> Result<(), Failure> {
    loop {
        survey.ask_again(ANSWER_TIMEOUT).await;
        let statuses = survey.answers.iter().map(|answer| &answer.status);
        let Some(missing) = missing(layout, statuses) else { return Ok(()) };
        if Instant::now() >= until {
            return Err(Failure::new(Exit::Other, "NOT_ACKNOWLEDGED", format!("{missing}, in time")));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// What some node that was asked lacks. Those that cannot be asked are judged by what the others say.
fn missing<'a>(layout: &Layout, statuses: impl Iterator<Item = &'a NodeStatus>) -> Option<String> {
    let mut is_any = false;
    let epoch = layout.epoch;
    let is_awaited = |node| layout.member(node).is_some_and(|member| !member.is_lost);
    for status in statuses.filter(|status| is_awaited(status.node)) {
        let name = &status.name;
        is_any = true;
        if status.epoch < epoch {
            return Some(format!("{name} has not acknowledged epoch {epoch}"));
        }
        for peer in status.peers.iter().filter(|peer| !layout.is_lost(peer.node)) {
            if !peer.connected {
                return Some(format!("{name} has no link to {}", peer.name));
            }
            if peer.epoch < epoch {
                return Some(format!("{name} has not heard that {} acknowledges epoch {epoch}", peer.name));
            }
        }
    }
    (!is_any).then(|| "no node answers".to_owned())
}
