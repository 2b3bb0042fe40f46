//! What is asked for and not done, with a sentence that says why and what helps.
//!
//! A hold never undoes anything: the store that runs goes on running as it is.

use std::collections::BTreeSet;

use keystore_core::id::ClusterId;
use keystore_core::layout::{KeyspaceMode, Layout};

use crate::children::{Wanted, find_taken};
use crate::identity::{Identity, Remembered, replaced};
use crate::names::Names;
use crate::observed::Observed;
use crate::validate::ValidCluster;

/// Why something that people asked for is not done, for the condition `Stalled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub reason: HoldReason,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldReason {
    IdentityConflict,
    NameConflict,
    BelowReplicationFactor,
    LayoutMismatch,
    InsufficientSpace,
    Unhealthy,
    /// Too few copies are left to rebuild what is gone, or to go back to.
    TooFewLeft,
    /// Too few voters are left to decide anything, or a recovery is half done.
    Undecidable,
    InvalidSpec,
    /// The API server refused what was planned, which the step that applies it finds out, or the store could not take it.
    Rejected,
}

impl HoldReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IdentityConflict => "IdentityConflict",
            Self::NameConflict => "NameConflict",
            Self::BelowReplicationFactor => "BelowReplicationFactor",
            Self::LayoutMismatch => "LayoutMismatch",
            Self::InsufficientSpace => "InsufficientSpace",
            Self::Unhealthy | Self::TooFewLeft | Self::Undecidable => "Unhealthy",
            Self::InvalidSpec => "InvalidSpec",
            Self::Rejected => "Rejected",
        }
    }
}

impl HoldReason {
    /// True where a person has to do something about a loss: nothing that they may do about a spec comes before that.
    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, Self::TooFewLeft | Self::Undecidable)
    }

    /// True where not even children may be written.
    pub(crate) fn stops_everything(self) -> bool {
        match self {
            Self::IdentityConflict | Self::NameConflict => true,
            // The store that runs goes on running, and a person may change their mind.
            Self::BelowReplicationFactor
            | Self::LayoutMismatch
            | Self::InsufficientSpace
            | Self::Unhealthy
            | Self::TooFewLeft
            | Self::Undecidable
            | Self::InvalidSpec
            | Self::Rejected => false,
        }
    }
}

pub(crate) fn plan_hold(
    valid: &ValidCluster,
    observed: &Observed,
    (identity, remembered): (&Identity, Remembered),
    wanted: &[Wanted],
) -> Option<Hold> {
    if let Identity::Conflict { clusters, missing } = identity {
        return Some(plan_conflict_hold(&valid.names, observed, remembered, (clusters, *missing)));
    }
    let name_conflict = plan_name_conflict(valid, observed, wanted);
    name_conflict.or_else(|| match identity.held_layout() {
        Some(layout) => {
            plan_accepting_hold(valid, observed, identity).or_else(|| plan_layout_mismatch(valid, layout))
        }
        None => plan_first_layout_hold(valid, identity),
    })
}

fn plan_conflict_hold(
    names: &Names,
    observed: &Observed,
    remembered: Remembered,
    (clusters, missing): (&BTreeSet<ClusterId>, Option<ClusterId>),
) -> Hold {
    let holders = |cluster: &ClusterId| {
        let heard = observed.heard().filter(|(_, answer)| answer.cluster == Some(*cluster));
        heard.map(|(ordinal, _)| names.pod(ordinal)).collect::<Vec<_>>().join(", ")
    };
    let named = |cluster: &ClusterId| match remembered.cluster == Some(*cluster) {
        true => " (the one that the status names)",
        false => "",
    };
    let held =
        clusters.iter().map(|cluster| format!("{}: store {cluster}{}", holders(cluster), named(cluster)));
    let held = held.collect::<Vec<_>>().join("; ");
    let message = match missing {
        Some(missing) => format!(
            "the status names store {missing}, and no node that answers holds it ({held}); another one may still hold it, \
             so nothing is touched: bring its volumes back, or, to go on with what the nodes hold, delete this resource \
             (volumes are kept) and create it again"
        ),
        None => format!(
            "the volumes hold {} different stores ({held}); nothing is touched until only those of one are left: of each \
             pod of another one, copy what you need, then delete its claim ({}) and the pod",
            clusters.len(),
            names.claim_of("POD")
        ),
    };
    Hold { reason: HoldReason::IdentityConflict, message }
}

/// A first layout that cannot be made of what is there.
fn plan_first_layout_hold(valid: &ValidCluster, identity: &Identity) -> Option<Hold> {
    if (valid.replicas as usize) < valid.replication_factor {
        return Some(Hold {
            reason: HoldReason::BelowReplicationFactor,
            message: format!(
                "spec.replicas is {} and replicationFactor {}: set spec.replicas to at least {}",
                valid.replicas, valid.replication_factor, valid.replication_factor
            ),
        });
    }
    let Identity::Impossible { error } = identity else { return None };
    Some(Hold {
        reason: HoldReason::IdentityConflict,
        message: format!("the nodes cannot form a store: {error}; a volume may be a copy of another"),
    })
}

/// A child's name that is taken by an object which this very resource does not control.
fn plan_name_conflict(valid: &ValidCluster, observed: &Observed, wanted: &[Wanted]) -> Option<Hold> {
    let taken = find_taken(valid, observed, wanted)?;
    Some(Hold {
        reason: HoldReason::NameConflict,
        message: format!(
            "{} {} exists and does not belong to this resource; delete or rename it, or give this resource another name",
            taken.kind, taken.name
        ),
    })
}

/// A first layout that can never take force, because a member's volume is gone before it accepted.
fn plan_accepting_hold(valid: &ValidCluster, observed: &Observed, identity: &Identity) -> Option<Hold> {
    let Identity::Accepting { layout } = identity else { return None };
    let replaced = replaced(valid, layout, observed);
    let pod = valid.names.pod(*replaced.keys().next()?);
    Some(Hold {
        reason: HoldReason::IdentityConflict,
        message: format!(
            "{pod} lost its volume before the store was initialised, so its first layout can never take force; nothing \
             was stored yet: delete this resource and its volumes, and create it again"
        ),
    })
}

fn plan_layout_mismatch(valid: &ValidCluster, layout: &Layout) -> Option<Hold> {
    let (factor, partitions) = (layout.replication_factor, layout.partitions);
    if factor == valid.replication_factor && partitions == valid.partitions {
        return plan_keyspaces_hold(valid, layout);
    }
    Some(Hold {
        reason: HoldReason::LayoutMismatch,
        message: format!(
            "the volumes hold a store with replicationFactor {factor} and partitions {}, which the spec cannot change; \
             delete this resource (volumes are kept) and create it with these values",
            partitions.get()
        ),
    })
}

/// The store goes on with the keyspaces that it has: more can be added, none removed or changed.
fn plan_keyspaces_hold(valid: &ValidCluster, layout: &Layout) -> Option<Hold> {
    if layout.keyspaces.iter().all(|(name, mode)| valid.keyspaces.get(name) == Some(mode)) {
        return None;
    }
    let as_it_is = |(name, mode): (&String, &KeyspaceMode)| match mode {
        KeyspaceMode::Lww => format!("{name} (lww)"),
        KeyspaceMode::Siblings => format!("{name} (siblings)"),
    };
    let held: Vec<_> = layout.keyspaces.iter().map(as_it_is).collect();
    Some(Hold {
        reason: HoldReason::LayoutMismatch,
        message: format!(
            "the volumes hold a store with the keyspaces {}, and spec.keyspaces says otherwise; none can be removed or \
             changed: delete this resource (volumes are kept) and create it with these keyspaces",
            held.join(", ")
        ),
    })
}
