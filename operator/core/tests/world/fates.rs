//! What may happen at any time.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::Incarnation;
use keystore_core::layout::{Layout, Member};
use keystore_core::recovery::Losses;
use keystore_core::ring::Ring;
use keystore_core::succession::{Change, others_of_a_quorum};
use keystore_crds::{Keyspace, KeyspaceMode};

use crate::world::{DEAD_MAX, PODS_MAX, REPLACE_AFTER_SECONDS, Rng, SILENCE_SECONDS, Volume, World, owners};

impl World {
    /// One at a time: only while all that was acknowledged is where it belongs.
    pub(crate) fn can_lose_one(&self) -> bool {
        if !self.layout.salvaged.is_empty() {
            return false;
        }
        let is_there = |(ordinal, volume): (&u32, &Volume)| {
            let is_lost = |layout: &Layout| layout.is_lost(volume.node);
            let is_counted =
                !self.dead.contains(ordinal) && !is_lost(&self.layout) && !self.undecided.iter().any(is_lost);
            is_counted.then_some(volume.node)
        };
        let there: BTreeSet<_> = self.volumes.iter().filter_map(is_there).collect();
        // After a recovery there are fewer copies and fewer voters, until others are made.
        let can_spare = |count: usize| others_of_a_quorum(count) < count;
        let is_spared = |ring: &Ring| ring.iter().all(|(_, replicas)| can_spare(replicas.len()));
        can_spare(self.layout.voters.len())
            && self.layout.voters.iter().all(|voter| there.contains(voter))
            && self.layout.rings().all(|ring| owners(ring).is_subset(&there) && is_spared(ring))
    }

    pub(crate) fn lose_volume(&mut self, ordinal: u32) {
        self.trace.push(format!("demo-{ordinal} loses its volume"));
        let fresh = self.fresh_volume();
        self.volumes.insert(ordinal, fresh);
    }

    pub(crate) fn die(&mut self, ordinal: u32) {
        if self.dead.len() < DEAD_MAX {
            self.trace.push(format!("demo-{ordinal} is dead"));
            self.dead.insert(ordinal);
        }
    }

    /// Somebody gives up a node by hand, whatever it does.
    pub(crate) fn lose_member(&mut self, ordinal: u32) {
        let Some(node) = self.volumes.get(&ordinal).map(|volume| volume.node) else { return };
        // Somebody who holds data has it decided, and knows first.
        let holds = |other: &u32| *other != ordinal && self.layout.owned(self.volumes[other].node) > 0;
        let Some(other) = self.up().into_iter().find(holds) else { return };
        if let Ok(next) = self.layout.next(&Change::Lose(BTreeSet::from([node]))) {
            self.trace.push(format!("demo-{ordinal} is given up by hand"));
            self.decide(next, other, false);
        }
    }

    /// A person names who is lost, and all others go on without them: some have lost their volumes, some their machines.
    pub(crate) fn recover(&mut self) {
        let live = self.live();
        let all = self.layout.members.clone();
        let is_there = |member: &&Member| live.contains(&member.node) && !member.is_lost;
        let left: Vec<_> = all.iter().filter(is_there).cloned().collect();
        let kept = self.rng.below(left.len() as u64) as usize;
        let is_left = |rng: &mut Rng, member: &Member| {
            member.node == left[kept].node || left.contains(member) && rng.below(3) == 0
        };
        let lost: BTreeSet<_> =
            all.iter().filter(|member| !is_left(&mut self.rng, member)).map(|member| member.node).collect();
        let incarnation = Incarnation { number: 2, id: 2 };
        let losses = Losses { nodes: lost.clone(), doubted: BTreeMap::new() };
        let layout = self.layout.recovered(incarnation, &losses).expect("somebody is left");
        self.trace.push(format!(
            "epoch {}: recovered without {lost:?}, {} partitions are salvaged",
            layout.epoch,
            layout.salvaged.len()
        ));
        self.salvaged += layout.salvaged.len();
        self.undecided.clear();
        for ordinal in self.volumes.keys().copied().collect::<Vec<_>>() {
            let volume = self.volumes.get_mut(&ordinal).unwrap();
            if layout.member(volume.node).is_some_and(|member| !member.is_lost) {
                volume.held = Some(layout.clone());
            } else if lost.contains(&volume.node) {
                match self.rng.below(3) {
                    0 => self.die(ordinal),
                    1 => self.lose_volume(ordinal),
                    _ => self.down.extend([ordinal]),
                }
            }
        }
        self.layout = layout;
    }

    /// A disk is damaged, and healed after a while.
    pub(crate) fn damage(&mut self, ordinal: u32) {
        let Some(volume) = self.volumes.get(&ordinal) else { return };
        let (node, seconds) = (volume.node, self.rng.below(SILENCE_SECONDS as u64) as i64);
        self.doubting.insert(node, self.seconds + seconds);
    }

    pub(crate) fn something_happens(&mut self) {
        let pods: Vec<_> = self.pods.iter().copied().collect();
        let Some(ordinal) = self.rng.pick(&pods) else { return self.run_pods() };
        match self.rng.below(20) {
            18 if self.rng.below(3) == 0 => self.damage(ordinal),
            // Kubernetes wants the pod of a machine that is gone to run elsewhere.
            19 if self.dead.contains(&ordinal) => drop(self.ending.entry(ordinal).or_insert(self.seconds)),
            0..=4 => self.learn(ordinal),
            5..=7 => self.merge(ordinal),
            8..=10 => self.run_pods(),
            11 if self.rng.below(3) == 0 => drop(self.down.insert(ordinal)),
            12 => drop(self.down.pop_first()),
            13 if self.rng.below(6) == 0 && self.can_lose_one() => self.lose_volume(ordinal),
            14 if self.rng.below(12) == 0 && self.can_lose_one() => self.die(ordinal),
            15 if self.rng.below(20) == 0 && self.can_lose_one() => self.lose_member(ordinal),
            16 if self.rng.below(8) == 0 => self.pass(SILENCE_SECONDS),
            17 if self.rng.below(8) == 0 => {
                self.resource.status = self.old_status.clone().or(self.resource.status.take());
            }
            _ => {}
        }
    }

    pub(crate) fn change_mind(&mut self) {
        match self.rng.below(8) {
            0 => {
                let seconds = if self.rng.below(3) == 0 { 0 } else { REPLACE_AFTER_SECONDS };
                self.trace.push(format!("spec.replaceAfterSeconds is {seconds}"));
                self.resource.spec.replace_after_seconds = seconds;
            }
            1 if self.resource.spec.keyspaces.len() < 3 => {
                let name = format!("more-{}", self.resource.spec.keyspaces.len());
                self.resource.spec.keyspaces.push(Keyspace { name, mode: KeyspaceMode::Lww });
            }
            _ => {
                let replicas = self.rng.below(PODS_MAX) + 1;
                self.ask_for(replicas);
            }
        }
    }

    pub(crate) fn ask_for(&mut self, replicas: u64) {
        self.trace.push(format!("spec.replicas is {replicas}"));
        self.resource.spec.replicas = i32::try_from(replicas).unwrap();
    }
}
