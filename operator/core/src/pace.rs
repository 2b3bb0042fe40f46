//! When to look again, if nothing calls earlier.
//!
//! Watches tell of changes in Kubernetes; only a look tells of a change in the nodes.

use std::time::Duration;

use keystore_crds::{ConditionType, KeyStoreClusterStatus};

/// While something is under way whose next step only the nodes know.
const BUSY: Duration = Duration::from_secs(1);
/// While something is wrong.
const TROUBLED: Duration = Duration::from_secs(3);
/// Otherwise. A node that stops serving also changes its pod's readiness, which is watched.
const IDLE: Duration = Duration::from_secs(30);

pub fn next_look(status: &KeyStoreClusterStatus) -> Duration {
    let is = |type_: ConditionType| {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == type_.as_str() && condition.status == "True")
    };
    if is(ConditionType::Progressing) {
        BUSY
    } else if is(ConditionType::Ready) {
        IDLE
    } else {
        TROUBLED
    }
}
