//! What is done while the spec cannot be acted upon: nothing that it would have to say anything about.
//!
//! The layout in force stands in for it. What moves goes on moving, who is gone is given up and replaced in the pods that
//! there are, and the status says how the store is. Nothing is written for it, and no pod comes or goes.

use keystore_core::layout::KeyspaceMode;
use keystore_crds::{ConfigSections, KeyStoreCluster, Keyspace, REPLICAS_MAX};

use crate::hold::{Hold, HoldReason};
use crate::identity::Identity;
use crate::observed::Observed;
use crate::plan::{NodeStep, Plan};
use crate::validate::{InvalidSpec, ValidCluster, validate};

/// What is followed in the place of a spec that is refused.
pub fn stand_in(cluster: &KeyStoreCluster, observed: &Observed) -> Result<ValidCluster, InvalidSpec> {
    let mut usable = cluster.clone();
    let spec = &mut usable.spec;
    spec.replicas = spec.replicas.clamp(1, i32::try_from(REPLICAS_MAX).unwrap_or(i32::MAX));
    (spec.replication_factor, spec.partitions) = (1, 256);
    spec.config = ConfigSections::default();
    (spec.pod_template, spec.replace_after_seconds) = (None, 0);
    spec.keyspaces = Vec::new();
    if let Some(held) = &observed.layout {
        spec.replication_factor = i32::try_from(held.layout.replication_factor).unwrap_or(1);
        spec.partitions = i32::from(held.layout.partitions.get());
        let keyspace = |(name, mode): (&String, &KeyspaceMode)| Keyspace {
            name: name.clone(),
            mode: match mode {
                KeyspaceMode::Lww => keystore_crds::KeyspaceMode::Lww,
                KeyspaceMode::Siblings => keystore_crds::KeyspaceMode::Siblings,
            },
        };
        spec.keyspaces = held.layout.keyspaces.iter().map(keyspace).collect();
    }
    Ok(ValidCluster { is_stand_in: true, ..validate(&usable, "")? })
}

impl Plan {
    /// Keeps of a plan that was made for a stand-in what the layout alone calls for, and says why no more is done.
    pub fn follow_layout_alone(&mut self, error: &InvalidSpec) {
        self.writes.clear();
        let is_in_force = matches!(self.identity, Identity::InForce { .. });
        let stays = |step: &NodeStep| matches!(step, NodeStep::Propose(proposal) if !proposal.needs_writes);
        if !is_in_force || !stays(&self.node_step) {
            self.node_step = NodeStep::Nothing;
        }
        self.is_hands_off |= !is_in_force;
        self.is_spec_refused = true;
        let (reason, message) = match self.hold.take() {
            Some(Hold { reason, message }) if reason.stops_everything() => {
                (reason, format!("{message}; besides, {error}"))
            }
            Some(Hold { reason, message }) if reason.is_urgent() => {
                (HoldReason::InvalidSpec, format!("{error}; besides, {message}"))
            }
            Some(_) | None => (HoldReason::InvalidSpec, error.to_string()),
        };
        self.hold = Some(Hold { reason, message });
    }
}
