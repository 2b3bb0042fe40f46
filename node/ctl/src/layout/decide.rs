//! Has one layout decided by a node that has the one before it.

use std::time::Duration;

use keystore_client::{AdminClient, Layout, Reason};

use crate::failure::{Exit, Failure};
use crate::survey::Survey;

/// After an error, nothing was decided unless its exit status is that of an unknown outcome.
pub(super) async fn decide(
    admin: &AdminClient,
    (now, next): (&Layout, &Layout),
    timeout: Duration,
) -> Result<(), Failure> {
    let proposed = admin.with_timeout(timeout).propose_layout(now.epoch, next).await;
    let decided = proposed.map_err(|error| {
        let is_late = *error.reason() == Reason::STALE_EPOCH;
        explain(now, is_late, Failure::from(error))
    })?;
    match decided {
        decided if decided == *next => Ok(()),
        decided if decided.epoch == next.epoch => Err(too_late(now)),
        decided => {
            let message = format!(
                "epoch {} is in force, and this change may have been one on the way there: look again",
                decided.epoch
            );
            Err(Failure::new(Exit::Unknown, Reason::STALE_EPOCH.as_str(), message))
        }
    }
}

pub(super) fn nobody(survey: &Survey) -> Failure {
    match survey.unanswered.first() {
        Some((_, error)) => Failure::from(error.clone()),
        None => Failure::new(Exit::CannotConnect, "CANNOT_CONNECT", "no node answers"),
    }
}

fn too_late(now: &Layout) -> Failure {
    let message = format!(
        "somebody else has changed the layout, epoch {} is in force no more; this change was not made: look again",
        now.epoch
    );
    Failure::new(Exit::Refused, Reason::STALE_EPOCH.as_str(), message)
}

fn explain(now: &Layout, is_late: bool, failure: Failure) -> Failure {
    let message = match failure.exit {
        _ if is_late => return Failure { message: too_late(now).message, ..failure },
        Exit::Unknown => {
            let next = now.epoch.0 + 1;
            format!("{}; whether epoch {next} is in force is shown by status", failure.message)
        }
        _ => now.with_names(&failure.message),
    };
    Failure { message, ..failure }
}
