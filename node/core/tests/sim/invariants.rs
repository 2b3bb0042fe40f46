//! What has to hold at every single step, looked up in the simulated disks: the world knows what is synced where,
//! whatever the nodes believe.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::causal::{Context, SIBLINGS_MAX};
use keystore_core::effect::{Alarm, Answer, Commit, Effect, Entry, Hint, LinkId, SavedState, Values};
use keystore_core::id::{Generation, NodeId};
use keystore_core::node::NodeState;
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::ring::Replica;
use keystore_core::stamp::Stamp;

use crate::coverage::Path;
use crate::disk::State;
use crate::machine::{Doubted, EPOCH_MS, Machine, Standing};
use crate::plan::Class;
use crate::request::{Asked, Told};
use crate::violation::{Checker, Violation};
use crate::world::World;

/// True if what is stored says all that a record says, or something that supersedes it.
pub(crate) fn covers(stored: &Record, record: &Record) -> bool {
    let merged = stored.clone().merge(record.clone());
    merged.version() == stored.version()
}

/// True if all that a token stands for is known to a record.
pub(crate) fn knows(stored: &Record, token: &Context) -> bool {
    let Body::Siblings(siblings) = &stored.body else { return false };
    let mut joined = siblings.context().clone();
    joined.join(token);
    joined == *siblings.context()
}

fn is_mark(record: &Record) -> bool {
    matches!(record.body, Body::Tombstone | Body::Expired)
}

impl World {
    /// True if so many of the key's replicas as the level asks for have on disk what is asked for, or had it until
    /// a fault took it away.
    ///
    /// What was lost before the generation that the asking machine knows of counts no longer.
    fn is_held(
        &self,
        n: usize,
        (key, level): (&RecordKey, Consistency),
        holds: impl Fn(&Record) -> bool,
    ) -> bool {
        let layout = self.layout_at(n);
        // Its replicas may have left, and hold nothing any more: what clients are told later is judged in the end.
        if layout.term() < self.layout.term() {
            return true;
        }
        let sets = layout.replica_sets(key.partition(layout.partitions));
        let counts = |node: &NodeId| {
            let Some(machine) = self.machines.iter().find(|machine| machine.id == *node) else {
                return false;
            };
            match machine.doubted.get(key) {
                Some(doubted) if self.known_generation(n, *node) > doubted.in_generation => {
                    let is_healed = doubted.is_healed || !machine.disk.is_rotten(key);
                    is_healed && machine.disk.synced_last(key).is_some_and(&holds)
                }
                _ => machine.disk.ever_synced(key).any(&holds),
            }
        };
        sets.satisfied(level, counts)
    }

    /// True if a key may have as many siblings as it is allowed to, or nearly: clients that fail to read it add more
    /// and more.
    pub(crate) fn is_capped(&self, key: &RecordKey) -> bool {
        let siblings = |n: usize| match self.machines[n].disk.visible(key).map(|record| &record.body) {
            Some(Body::Siblings(siblings)) => siblings.distinct().len(),
            _ => 0,
        };
        let most = self.replicas(key).into_iter().map(siblings).max().unwrap_or_default();
        self.class(key) == Class::Cart && (self.plan.only_adds || most > SIBLINGS_MAX / 2)
    }

    pub(crate) fn class(&self, key: &RecordKey) -> Class {
        let n = self.keys.iter().position(|known| known == key);
        n.map_or(Class::Loose, |n| self.plan.keys[n])
    }

    pub(crate) fn check_answer(&mut self, n: usize, index: usize, answer: &Answer) {
        let request = &self.requests[index];
        let (level, asked) = (request.level, request.asked.clone());
        match (answer, asked) {
            (Answer::Written { stamp, durability, context, .. }, asked) => {
                let Some(key) = asked.key().cloned() else { return };
                self.check_own_stamp(n, &key, *stamp);
                match durability {
                    Durability::Synced => self.check_written(n, &key, (*stamp, context.as_ref()), level),
                    Durability::Periodic => self.coverage.count(Path::PeriodicAcknowledged),
                }
            }
            (Answer::Read(values), Asked::Get { key }) if request.is_promised => {
                let floor = request.floor;
                self.check_read(n, &key, values, floor);
            }
            (Answer::Scanned { entries, .. }, _) => {
                for (key, values) in entries {
                    if self.class(key) != Class::Loose {
                        self.check_shown_values(n, key, values);
                    }
                }
            }
            _ => {}
        }
    }

    fn check_written(
        &mut self,
        n: usize,
        key: &RecordKey,
        (stamp, token): (Stamp, Option<&bytes::Bytes>),
        level: Consistency,
    ) {
        let token = token.map(|token| Context::from_token(key, token).unwrap());
        let is_held = match &token {
            Some(token) => self.is_held(n, (key, level), |record| knows(record, token)),
            None => self.is_held(n, (key, level), |record| record.stamp >= stamp),
        };
        if !is_held {
            let what = format!("machine {n} acknowledged {key:?} at {stamp:?}, which too few disks have");
            self.violate(Violation::new(Checker::AcknowledgedIsSyncedOnAQuorum, key, what));
        }
        self.note_owed(n, key, (stamp, token.as_ref()));
    }

    fn check_read(&mut self, n: usize, key: &RecordKey, values: &Values, floor: Option<Stamp>) {
        if !values.values.is_empty() || values.context.is_some() {
            return self.check_shown_values(n, key, values);
        }
        let Some(floor) = floor else { return };
        if self.reason_to_miss(n, key, floor).is_none() {
            let what = format!("machine {n} finds {key:?} missing, after {floor:?} was promised");
            self.violate(Violation::new(Checker::MissingHasAReason, key, what));
        }
    }

    /// The lowest mark that a quorum holds, or more than that, and that is not below what was promised.
    fn reason_to_miss(&self, n: usize, key: &RecordKey, floor: Stamp) -> Option<Stamp> {
        let (_, fastest) = self.clock_range;
        let latest_ms = (EPOCH_MS + self.now_ms).saturating_add_signed(fastest);
        let is_due = |expires_ms: &Option<u64>| expires_ms.is_none_or(|expires_ms| expires_ms <= latest_ms);
        let marks = self.marks.get(key)?.range(floor..).filter(|(_, expires_ms)| is_due(expires_ms));
        let is_held = |mark: &Stamp| {
            self.is_held(n, (key, Consistency::Quorum), |record| {
                record.stamp > *mark || record.stamp == *mark && is_mark(record)
            })
        };
        marks.map(|(mark, _)| *mark).find(is_held)
    }

    fn check_shown_values(&mut self, n: usize, key: &RecordKey, values: &Values) {
        let is_held = match &values.context {
            Some(token) => {
                let token = Context::from_token(key, token).unwrap();
                self.is_held(n, (key, Consistency::Quorum), |record| knows(record, &token))
            }
            None => values.values.iter().all(|(_, stamp)| {
                self.is_held(n, (key, Consistency::Quorum), |record| record.stamp >= *stamp)
            }),
        };
        if !is_held {
            let what = format!("machine {n} answers {values:?} for {key:?}, which too few disks have");
            self.violate(Violation::new(Checker::AnsweredIsSyncedOnAQuorum, key, what));
        }
    }

    /// Notes what an answer promises to whoever asks later.
    pub(crate) fn raise_floor(&mut self, n: usize, index: usize) {
        let request = &self.requests[index];
        let (Some(key), Some((_, told)), true) = (request.asked.key(), &request.told, request.is_promised)
        else {
            return;
        };
        let key = key.clone();
        let promised = match told {
            Told::Written { stamp, .. } => Some(*stamp),
            Told::Read(values) if self.class(&key) == Class::Cart => {
                values.values.iter().map(|(_, s)| *s).max()
            }
            Told::Read(values) => match values.values.first() {
                Some((_, stamp)) => Some(*stamp),
                None => request.floor.and_then(|floor| self.reason_to_miss(n, &key, floor)),
            },
            Told::Scanned { .. } | Told::Failed(_) | Told::Unknown => None,
        };
        if let Some(promised) = promised
            && self.class(&key) != Class::Cart
        {
            let floor = self.floors.entry(key).or_insert(promised);
            *floor = promised.max(*floor);
        }
    }

    /// Notes what may leave a key without a value: the stamp of a delete, or of a value and when that expires.
    fn note_mark(&mut self, key: &RecordKey, record: &Record) {
        let expires_ms = match record.body {
            Body::Tombstone | Body::Expired => None,
            Body::Expiring { expires_ms, .. } => Some(expires_ms),
            Body::Value(_) | Body::Siblings(_) => return,
        };
        self.marks.entry(key.clone()).or_default().insert(record.stamp, expires_ms);
    }

    pub(crate) fn check_effect(&mut self, n: usize, effect: &Effect) {
        if let Effect::Commit(Commit { entry, .. }) = effect {
            self.check_entry(n, entry);
        }
        match effect {
            Effect::Commit(Commit { entry: Entry::Record { key, record }, .. })
            | Effect::Commit(Commit { entry: Entry::Replace { key, record: Some(record) }, .. }) => {
                self.note_mark(key, record);
            }
            Effect::AcceptLink { link, .. } => self.check_accepted(n, *link),
            Effect::Save { state: SavedState::Layout { layout, decided }, .. } => {
                self.check_layout(n, layout, *decided);
            }
            Effect::Save { state: SavedState::Merges(merges), .. } => self.check_merges(n, merges),
            _ => {}
        }
    }

    fn check_entry(&mut self, n: usize, entry: &Entry) {
        match entry {
            Entry::Record { key, record } => {
                self.check_dots(n, key, record);
            }
            Entry::Replace { key, record } => self.check_healing(n, key, record.as_ref()),
            Entry::Hint(Hint { target, key, .. }) => self.note_hint(n, *target, key),
            Entry::HintDone { target, key } => self.check_hint_done(n, *target, key),
        }
    }

    fn check_dots(&mut self, n: usize, key: &RecordKey, record: &Record) {
        let Body::Siblings(siblings) = &record.body else { return };
        let mut operations = BTreeSet::new();
        if !siblings.values().all(|(dot, sibling)| operations.insert((dot.actor, sibling.operation))) {
            let what = format!("machine {n} stores two dots of one operation: {record:?}");
            self.violate(Violation::new(Checker::OneOperationIsOneDot, key, what));
        }
        // A dot is nowhere before it is where it was given.
        let seen = self.minted.entry(key.clone()).or_default();
        let before = seen.len();
        seen.extend(siblings.values().map(|(dot, _)| dot));
        let siblings = siblings.distinct().len();
        if seen.len() > before && siblings > SIBLINGS_MAX {
            let what = format!("machine {n} takes sibling number {siblings}");
            self.violate(Violation::new(Checker::SiblingsAreCapped, key, what));
        }
    }

    /// What a node has synced names each write by a dot of its own.
    pub(crate) fn check_dots_synced(&mut self, n: usize, entry: &Entry) {
        let Entry::Record { key, record } = entry else { return };
        let Body::Siblings(siblings) = &record.body else { return };
        // A process of an old image of a disk gives dots a second time, until somebody refuses it. They count once
        // another machine has them.
        if self.machines[n].is_stale {
            return;
        }
        for (dot, sibling) in siblings.values() {
            let first = *self.dots.entry(key.clone()).or_default().entry(dot).or_insert(sibling.operation);
            if first != sibling.operation {
                let what =
                    format!("machine {n} has {dot:?} for {:?}, which was {first:?}", sibling.operation);
                return self.violate(Violation::new(Checker::OneDotIsOneWrite, key, what));
            }
        }
    }

    /// Rule 14.
    fn check_healing(&mut self, n: usize, key: &RecordKey, record: Option<&Record>) {
        if record.is_none() && (self.is_cleared(n, key) || self.is_left(n, key)) {
            self.machines[n].doubted.remove(key);
            self.machines[n].in_doubt.remove(key);
            self.machines[n].damaged.remove(key);
            return;
        }
        let Some(doubted) = self.machines[n].doubted.get(key).copied() else { return };
        if record.is_none() && self.may_drop_what_is_damaged(n, key) {
            return;
        }
        let Doubted { in_generation: generation, floor, is_healed: _ } = doubted;
        let now = self.machines[n].disk.state.generation;
        if now <= generation {
            let what = format!("machine {n} heals {key:?} in generation {now}, in which it came into doubt");
            self.violate(Violation::new(Checker::DoubtRaisesTheGeneration, key, what));
        }
        let partition = key.partition(self.layout.partitions);
        let rings: Vec<_> = self.layout_at(n).rings().map(|ring| ring.replicas(partition).to_vec()).collect();
        let id = self.machines[n].id;
        let is_enough = |(of, tellers): &(RecordKey, BTreeMap<NodeId, Generation>)| {
            let has_told = |node: &NodeId| {
                *node != id && tellers.get(node).is_some_and(|told| *told == self.known_generation(n, *node))
            };
            let is_quorum = |ring: &Vec<Replica>| {
                let others = ring.iter().map(|replica| replica.node).filter(has_told).count();
                others > ring.len() - Consistency::Quorum.needed(ring.len())
            };
            of == key && rings.iter().any(is_quorum)
        };
        if !self.machines[n].told_of.values().any(is_enough) {
            let what = format!("machine {n} heals {key:?}, and too few have told it what they hold");
            self.violate(Violation::new(Checker::HealedByEnough, key, what));
        }
        if floor.is_some_and(|floor| record.is_none_or(|record| record.stamp < floor)) {
            let what = format!("machine {n} heals {key:?} with {record:?}, and {floor:?} was promised");
            self.violate(Violation::new(Checker::HealedHoldsWhatWasPromised, key, what));
        }
    }

    fn check_accepted(&mut self, n: usize, link: LinkId) {
        let Some(hello) = self.network.offered(link, n) else {
            let what = format!("machine {n} accepts {link:?}, which is closed");
            return self.violate(Violation::of_the_world(Checker::ClosedLinksStayClosed, what));
        };
        let ours = self.machines[n].node.as_ref().and_then(|node| node.layout());
        let is_of_another = ours.is_some_and(|layout| layout.incarnation != hello.header.incarnation);
        if hello.header.to != self.machines[n].id || is_of_another {
            let what = format!("machine {n} accepts {hello:?}, which is meant for others");
            return self.violate(Violation::of_the_world(Checker::StrayFramesAreIgnored, what));
        }
        let State { peers, membership, .. } = &self.machines[n].disk.state;
        let known = peers.get(&hello.header.from);
        let is_overtaken = self.known_generation(n, hello.header.from) > hello.header.generation;
        // Whoever belongs to no cluster, or to none any more, knows nobody well; nothing is asked on its links.
        let is_member = membership.is_some() && self.layout.member(self.machines[n].id).is_some();
        if known != Some(&hello.identity()) || is_overtaken {
            let what = format!("machine {n} accepts {hello:?}, and has {known:?} on disk");
            self.violate(Violation::of_the_world(Checker::IdentitiesAreDurable, what));
        } else if is_member && !self.machines[n].is_stale && self.is_of_a_copy(hello) {
            let what = format!("machine {n} accepts {hello:?} of a disk that was rolled back or cloned");
            self.violate(Violation::of_the_world(Checker::StaleDisksAreRefused, what));
        }
    }

    pub(crate) fn check_alarm(&mut self, n: usize, alarm: Alarm) {
        self.note(format_args!("machine {n}: {alarm:?}"));
        match alarm {
            Alarm::EqualStamps { key, stamp } => {
                let what = format!("machine {n} holds two records of {stamp:?}");
                self.violate(Violation::new(Checker::EqualStampsAreEqual, &key, what));
            }
            Alarm::DamagedRecord { key } => {
                if !self.machines[n].damaged.contains(&key) {
                    let what = format!("machine {n} calls a whole record damaged");
                    self.violate(Violation::new(Checker::DoubtHasAReason, &key, what));
                }
                let in_generation = self.machines[n].disk.state.generation;
                let floor = self.floors.get(&key).copied();
                let doubted = Doubted { in_generation, floor, is_healed: false };
                self.machines[n].in_doubt.insert(key.clone());
                self.machines[n].doubted.insert(key, doubted);
            }
            Alarm::Healed { key } => {
                self.machines[n].damaged.remove(&key);
                self.machines[n].in_doubt.remove(&key);
                if let Some(doubted) = self.machines[n].doubted.get_mut(&key) {
                    doubted.is_healed = true;
                }
                self.is_whole_again(n);
            }
            Alarm::DoubtedPartition { partition } => {
                self.machines[n].partitions_in_doubt.insert(partition);
            }
            Alarm::HealedPartition { partition } => {
                self.machines[n].partitions_in_doubt.remove(&partition);
                self.is_whole_again(n);
            }
            // A rolled-back or cloned disk, set aside by now: the process ends.
            Alarm::StaleGeneration { .. } => {
                self.coverage.count(Path::StaleGenerationRefused);
                if !self.machines[n].is_stale {
                    let what = format!("machine {n} sets aside the only disk that its peers have seen of it");
                    self.violate(Violation::of_the_world(Checker::SetAsideHasAReason, what));
                }
                self.end_for_good(n);
            }
            Alarm::Departed { .. } => self.check_departure(n),
        }
    }

    /// Rule 18: who serves knows that all members have accepted the layout, which they have on disk.
    pub(crate) fn check_serving(&mut self) {
        let now_ms = self.now_ms;
        let serves = |machine: &Machine| {
            let state = machine.node.as_ref().map(|node| node.status(machine.now(now_ms)).state);
            state == Some(NodeState::Serving)
        };
        let Some(n) = self.machines.iter().position(serves) else { return };
        let mut members = self.machines.iter().take(self.plan.nodes);
        if let Some(other) = members.find(|machine| machine.disk.state.membership.is_none()) {
            let what = format!("machine {n} serves, and {} has accepted no layout", other.id);
            self.violate(Violation::of_the_world(Checker::ServingMeansAllAccepted, what));
        }
    }

    /// The machines that hold this key and can be asked.
    pub(crate) fn replicas(&self, key: &RecordKey) -> Vec<usize> {
        let sets = self.layout.replica_sets(key.partition(self.layout.partitions));
        let machine = |node: NodeId| self.machines.iter().position(|machine| machine.id == node);
        let replicas = sets.nodes().filter(|node| !self.layout.is_lost(*node)).filter_map(machine);
        replicas.filter(|n| self.machines[*n].standing != Standing::Gone).collect()
    }

    pub(crate) fn check_convergence(&mut self, key: &RecordKey) {
        let replicas = self.replicas(key);
        let held: Vec<_> = replicas.iter().map(|n| (n, self.machines[*n].disk.synced(key))).collect();
        let are_equal = held.windows(2).all(|pair| pair[0].1 == pair[1].1);
        // A replica whose record has rotted, or that is in doubt, refuses the key until it is healed.
        let is_damaged =
            |n: &usize| self.machines[*n].disk.is_rotten(key) || self.machines[*n].in_doubt.contains(key);
        if !are_equal && !replicas.iter().any(is_damaged) {
            let what = format!("{held:?}");
            self.violate(Violation::new(Checker::ReplicasConverge, key, what));
        }
    }

    /// Rule 27: what waits in a node is bounded.
    pub(crate) fn check_bounds(&mut self, n: usize) {
        let settings = &self.plan.settings;
        let Some(node) = &self.machines[n].node else { return };
        let status = node.status(self.machines[n].now(self.now_ms));
        let writes_max = settings.writes_max + settings.writes_max / 4;
        let (requests, writes) = (status.requests_under_way, status.writes_under_way);
        let hints = status.hints.bytes;
        let hints_max = settings.hint_bytes_max.max(self.machines[n].hint_bytes_found);
        let is_within = requests <= settings.requests_max && writes <= writes_max && hints <= hints_max;
        self.machines[n].hint_bytes_found = hints;
        if !is_within {
            let what =
                format!("machine {n} has {requests} requests, {writes} writes and {hints} bytes of hints");
            self.violate(Violation::of_the_world(Checker::QueuesStayWithinTheirBounds, what));
        }
    }
}
