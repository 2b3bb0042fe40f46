//! What else of the layout changes while nodes join and leave: the zones and weights of members, the keyspaces, and how
//! many replicas there are to be.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::NodeId;
use keystore_core::layout::{KeyspaceMode, Layout, Member};
use keystore_core::quorum::Consistency;
use keystore_core::ring::Ring;
use keystore_core::succession::{Change, Step};

use crate::coverage::Path;
use crate::faults::Fault;
use crate::plan::Plan;
use crate::world::World;

impl Plan {
    /// Where a machine stands, until it is moved.
    pub(crate) fn zone(&self, n: usize) -> String {
        if self.zones > 1 { format!("zone-{}", n % self.zones) } else { String::new() }
    }

    pub(crate) fn weight(&self, n: usize) -> u32 {
        if self.varies { 1 + (n % 3) as u32 } else { 1 }
    }

    /// How many replicas there may be. A disk that is older than others know, or a copy, may be a quorum by itself under
    /// the layout on it, where there were so few replicas once: then there always are as many as at first.
    fn factors(&self) -> &'static [usize] {
        let is_copy = |fault: &Fault| matches!(fault, Fault::RollBack | Fault::Clone);
        match self.faults.iter().any(is_copy) {
            true if self.replication_factor < 3 => &[],
            true => &[3, 3, 5],
            false => &[1, 2, 3, 3, 5],
        }
    }
}

impl World {
    /// A change beside who holds the data; or other numbers of replicas are wanted from now on.
    pub(crate) fn vary(&mut self, layout: &Layout) -> Option<Change> {
        match self.rng.between(1, 3) {
            1 => {
                let number = layout.keyspaces.len();
                let mode = self.rng.pick(&[KeyspaceMode::Lww, KeyspaceMode::Siblings]);
                Some(Change::Keyspaces(BTreeMap::from([(format!("more-{number}"), mode)])))
            }
            2 => {
                let member = &layout.members[self.rng.index(layout.members.len())];
                let zones = self.plan.zones.max(2) as u64;
                let zone = format!("zone-{}", self.rng.between(0, zones - 1));
                let weight = self.rng.between(1, 4) as u32;
                Some(Change::Admit(vec![Member { zone, weight, ..member.clone() }]))
            }
            _ => {
                let factors = self.plan.factors();
                if !factors.is_empty() {
                    self.factor = self.rng.pick(factors).min(self.plan.machines());
                }
                None
            }
        }
    }

    /// Members that are to go are given no data any more, whatever was voted for before.
    pub(crate) fn close_to_data(&self, layout: &Layout, leaving: &BTreeSet<NodeId>) -> Option<Change> {
        let is_open = |member: &&Member| leaving.contains(&member.node) && member.weight > 0;
        let open = layout.members.iter().filter(is_open);
        let closed: Vec<_> = open.map(|member| Member { weight: 0, ..member.clone() }).collect();
        (!closed.is_empty()).then_some(Change::Admit(closed))
    }

    /// The fewest acknowledgements with which a write may have been done under any layout of this run.
    pub(crate) fn least_quorum(&self) -> usize {
        let quorum = |ring: &Ring| Consistency::Quorum.needed(ring.replication_factor());
        let of = |layout: &Layout| layout.rings().map(quorum).max();
        self.layouts.values().filter_map(of).min().unwrap_or(1)
    }

    pub(crate) fn count_varied(&mut self, before: &Layout, layout: &Layout, step: Step) {
        let of = |member: &Member| (before.member(member.node).cloned(), member.clone());
        let kept: Vec<_> = layout.members.iter().map(of).collect();
        for (before, now) in kept.iter().filter_map(|(before, now)| Some((before.as_ref()?, now))) {
            if now.weight == 0 && before.weight > 0 {
                self.coverage.count(Path::LeaverClosed);
            } else if now.weight > 0 && before.weight == 0 {
                self.coverage.count(Path::LeaverReopened);
            } else if (now.weight, &now.zone) != (before.weight, &before.zone) {
                self.coverage.count(Path::MemberPlacedAnew);
            }
        }
        let is_gone = |member: &Member| member.weight == 0 && layout.departed.contains(&member.node);
        if before.members.iter().any(is_gone) {
            self.coverage.count(Path::ClosedWasDismissed);
        }
        if layout.keyspaces.len() > before.keyspaces.len() {
            let is_moving = before.is_joint();
            self.coverage.count(if is_moving { Path::KeyspaceAddedInAMove } else { Path::KeyspaceAdded });
        }
        let (old, new) = (before.source_ring().replication_factor(), layout.ring().replication_factor());
        match step {
            Step::Finish if new > old => self.coverage.count(Path::MoreReplicas),
            Step::Finish if new < old => self.coverage.count(Path::FewerReplicas),
            Step::Abort if before.ring().replication_factor() != new => {
                self.coverage.count(Path::ReplicasAborted);
            }
            Step::Finish | Step::Abort | Step::Same | Step::Begin => {}
        }
    }
}
