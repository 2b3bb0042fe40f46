//! What is worth an event: each start, end, hold and halt, read off the change of the conditions.
//!
//! Derived from the two statuses alone, so an event is told once and a cluster at rest tells none.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use keystore_crds::{ConditionType, KeyStoreClusterStatus};

/// An event before it has an object and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDraft {
    pub is_warning: bool,
    /// What happened, in one word.
    pub reason: String,
    /// The condition that changed.
    pub action: &'static str,
    pub note: String,
}

pub fn plan_events(status: Option<&KeyStoreClusterStatus>, new: &KeyStoreClusterStatus) -> Vec<EventDraft> {
    let before = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    ConditionType::ALL
        .into_iter()
        .filter_map(|type_| {
            let now = find(&new.conditions, type_)?;
            let old = find(before, type_);
            plan_event(type_, old, now).or_else(|| plan_end(old?, now, (status?, new)))
        })
        .collect()
}

fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_.as_str())
}

fn plan_event(type_: ConditionType, old: Option<&Condition>, new: &Condition) -> Option<EventDraft> {
    let was = old.is_some_and(|old| old.status == "True");
    let is = new.status == "True";
    let other_reason = is && old.is_some_and(|old| old.reason != new.reason);
    let (is_warning, reason) = match (type_, was, is) {
        (ConditionType::Ready, false, true) => (false, "Ready".to_owned()),
        (ConditionType::Progressing, false, true) => (false, new.reason.clone()),
        (ConditionType::Progressing, true, true) if other_reason => (false, new.reason.clone()),
        (ConditionType::Available, true, false) => (true, new.reason.clone()),
        (ConditionType::Degraded | ConditionType::Stalled, false, true) => (true, new.reason.clone()),
        (ConditionType::Degraded | ConditionType::Stalled, true, true) if other_reason => {
            (true, new.reason.clone())
        }
        (ConditionType::Degraded, true, false) => (false, "Recovered".to_owned()),
        (ConditionType::Stalled, true, false) => (false, "Resumed".to_owned()),
        (ConditionType::UpdatePending, false, true) => (false, "UpdatePending".to_owned()),
        (
            ConditionType::Ready
            | ConditionType::Available
            | ConditionType::Progressing
            | ConditionType::Degraded
            | ConditionType::Stalled
            | ConditionType::UpdatePending,
            _,
            _,
        ) => return None,
    };
    Some(EventDraft { is_warning, reason, action: type_.as_str(), note: new.message.clone() })
}

/// An operation runs no longer: it is over, or held up before it was.
fn plan_end(
    old: &Condition,
    new: &Condition,
    (before, status): (&KeyStoreClusterStatus, &KeyStoreClusterStatus),
) -> Option<EventDraft> {
    let action = ConditionType::Progressing.as_str();
    if new.type_ != action || old.status != "True" || new.status == "True" {
        return None;
    }
    let ready = find(&status.conditions, ConditionType::Ready);
    if let Some(held) = ready.filter(|ready| ready.reason == "Held") {
        let (reason, note) = (format!("{}Stopped", old.reason), held.message.clone());
        return Some(EventDraft { is_warning: true, reason, action, note });
    }
    let withdrawn = before
        .operation
        .as_ref()
        .filter(|operation| operation.from != operation.to && operation.from == Some(status.replicas));
    if let Some(operation) = withdrawn {
        let (reason, from) = (format!("{}Withdrawn", old.reason), operation.from.unwrap_or_default());
        let note = format!("nothing was changed: {from} nodes hold the data, as before");
        return Some(EventDraft { is_warning: false, reason, action, note });
    }
    let reason = match old.reason.as_str() {
        "Creating" => "Created".to_owned(),
        "Upgrading" => "Upgraded".to_owned(),
        "ScalingUp" => "ScaledUp".to_owned(),
        "ScalingDown" => "ScaledDown".to_owned(),
        "Replacing" => "Replaced".to_owned(),
        "AddingKeyspaces" => "KeyspacesAdded".to_owned(),
        other => format!("{other}Ended"),
    };
    Some(EventDraft { is_warning: false, reason, action, note: new.message.clone() })
}
