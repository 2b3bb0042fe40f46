//! What has to hold at every single step, looked up in the simulated disks: the world knows what is synced where,
//! whatever the nodes believe.

use std::collections::BTreeSet;

use keystore_core::causal::{Context, SIBLINGS_MAX};
use keystore_core::effect::{Alarm, Answer, Commit, Effect, Entry, Event, Hint, LinkId, SavedState, Values};
use keystore_core::id::{Generation, NodeId};
use keystore_core::message::{
    Call, Header, Message, Mint, MintOutcome, Origin, ReadOutcome, Refusal, ScanOutcome, Write, WriteOutcome,
};
use keystore_core::node::{NodeState, Settings};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

use crate::coverage::Path;
use crate::machine::{Doubted, EPOCH_MS, Machine, Standing};
use crate::plan::Class;
use crate::request::{Asked, Told};
use crate::violation::{Checker, Violation};
use crate::world::World;

/// True if what is stored says all that a record says, or something that supersedes it.
fn covers(stored: &Record, record: &Record) -> bool {
    let merged = stored.clone().merge(record.clone());
    merged.version() == stored.version()
}

/// True if all that a token stands for is known to a record.
fn knows(stored: &Record, token: &Context) -> bool {
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
        let sets = self.layout.replica_sets(key.partition(self.layout.partitions));
        let counts = |node: &NodeId| {
            let Some(machine) = self.machines.iter().find(|machine| machine.id == *node) else {
                return false;
            };
            match machine.doubted.get(key) {
                Some(doubted) if self.known_generation(n, *node) > doubted.in_generation => {
                    doubted.is_healed && machine.disk.synced_last(key).is_some_and(&holds)
                }
                _ => machine.disk.ever_synced(key).any(&holds),
            }
        };
        sets.satisfied(level, counts)
    }

    /// The highest generation of a node that a machine knows of: its own is on its disk.
    fn known_generation(&self, n: usize, of: NodeId) -> Generation {
        let machine = &self.machines[n];
        if machine.id == of {
            return machine.disk.state.generation;
        }
        let noted = machine.disk.state.peers.get(&of).map(|(generation, _)| *generation);
        noted.max(machine.heard.get(&of).copied()).unwrap_or_default()
    }

    fn class(&self, key: &RecordKey) -> Class {
        let n = self.keys.iter().position(|known| known == key);
        n.map_or(Class::Loose, |n| self.plan.keys[n])
    }

    pub(crate) fn check_answer(&mut self, n: usize, index: usize, answer: &Answer) {
        let request = &self.requests[index];
        let (level, asked) = (request.level, request.asked.clone());
        match (answer, asked) {
            (Answer::Written { stamp, durability, context, .. }, asked) => {
                let Some(key) = asked.key().cloned() else { return };
                self.check_issued_below_ceiling(n, &key, *stamp);
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
        let is_held = match token.map(|token| Context::from_token(key, token).unwrap()) {
            Some(token) => self.is_held(n, (key, level), |record| knows(record, &token)),
            None => self.is_held(n, (key, level), |record| record.stamp >= stamp),
        };
        if !is_held {
            let what = format!("machine {n} acknowledged {key:?} at {stamp:?}, which too few disks have");
            self.violate(Violation::new(Checker::AcknowledgedIsSyncedOnAQuorum, key, what));
        }
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

    /// Notes what a node is asked to do, so that its answers can be judged.
    pub(crate) fn note_arrival(&mut self, n: usize, event: &Event) {
        let (header, messages) = match event {
            Event::Frame { header, messages, .. } => (header, messages),
            Event::LinkOffered { hello, .. } if hello.header.to == self.machines[n].id => {
                return self.note_generation(n, hello.header.from, hello.header.generation);
            }
            _ => return,
        };
        if !self.is_stray(n, header) {
            for message in messages {
                self.note_noted(n, (header.from, message));
            }
        }
        let now = self.machines[n].now(self.now_ms);
        let latest_ms = now.wall_ms.saturating_sub(self.plan.settings.skew_ms_max);
        for message in messages {
            let (call, deadline_ms) = match message {
                Message::Write(Write { call, origin: Origin::Client { deadline_wall_ms }, .. })
                | Message::Mint(Mint { call, deadline_wall_ms, .. }) => (*call, *deadline_wall_ms),
                Message::Write(Write { call, .. })
                | Message::Read { call, .. }
                | Message::Scan { call, .. } => (*call, u64::MAX),
                _ => continue,
            };
            if call.operation == 0 || self.is_stray(n, header) {
                continue;
            }
            let asked = &mut self.machines[n].asked;
            let was_in_time = asked.get(&(header.from, call)).is_some_and(|(_, is_late)| !is_late);
            let is_late = deadline_ms < latest_ms && !was_in_time;
            asked.insert((header.from, call), (message.clone(), is_late));
        }
    }

    fn note_generation(&mut self, n: usize, of: NodeId, generation: Generation) {
        let heard = self.machines[n].heard.entry(of).or_default();
        *heard = generation.max(*heard);
    }

    /// What an answer says of the generations of others.
    fn note_noted(&mut self, n: usize, (from, message): (NodeId, &Message)) {
        let (call, noted) = match message {
            Message::WriteAnswer { call, noted, .. }
            | Message::MintAnswer { call, noted, .. }
            | Message::ReadAnswer { call, noted, .. }
            | Message::ScanAnswer { call, noted, .. } => (call, noted),
            _ => return,
        };
        let Some(partition) = self.machines[n].sent.get(&(from, *call)).copied() else { return };
        for (node, generation) in self.layout.replicas(partition).into_iter().zip(noted) {
            self.note_generation(n, node, *generation);
        }
    }

    /// A frame that may change nothing: it is meant for somebody else, or its sender has been heard of as a later
    /// generation, durably.
    fn is_stray(&self, n: usize, header: &Header) -> bool {
        let machine = &self.machines[n];
        let known = self.known_generation(n, header.from);
        header.to != machine.id || header.cluster != self.layout.cluster || known > header.generation
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
            Effect::Save { state: SavedState::Layout { layout, .. }, .. } => {
                let before = self.machines[n].disk.state.membership.as_ref();
                if before.is_some_and(|(before, _)| before.digest() != layout.digest()) {
                    let what = format!("machine {n} takes a second first layout");
                    self.violate(Violation::of_the_world(Checker::ServingMeansAllAccepted, what));
                }
            }
            _ => {}
        }
    }

    fn check_entry(&mut self, n: usize, entry: &Entry) {
        match entry {
            Entry::Record { key, record } => self.check_dots(n, key, record),
            Entry::Replace { key, record } => self.check_healing(n, key, record.as_ref()),
            Entry::Hint(Hint { target, key, .. }) => {
                if let Some(record) = self.machines[n].disk.visible(key).cloned() {
                    self.machines[n].hinted.insert((*target, key.clone()), record);
                }
            }
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
    }

    /// Rule 14.
    fn check_healing(&mut self, n: usize, key: &RecordKey, record: Option<&Record>) {
        let Some(doubted) = self.machines[n].doubted.get(key).copied() else { return };
        let Doubted { in_generation: generation, floor, is_healed: _ } = doubted;
        let now = self.machines[n].disk.state.generation;
        if now <= generation {
            let what = format!("machine {n} heals {key:?} in generation {now}, in which it came into doubt");
            self.violate(Violation::new(Checker::DoubtRaisesTheGeneration, key, what));
        }
        if floor.is_some_and(|floor| record.is_none_or(|record| record.stamp < floor)) {
            let what = format!("machine {n} heals {key:?} with {record:?}, and {floor:?} was promised");
            self.violate(Violation::new(Checker::HealedHoldsWhatWasPromised, key, what));
        }
    }

    /// Rule 7: a hint that is neither too old nor too many ends only once the target has what it may have missed.
    fn check_hint_done(&mut self, n: usize, target: NodeId, key: &RecordKey) {
        let hinted = self.machines[n].hinted.remove(&(target, key.clone()));
        let (settings, usual) = (&self.plan.settings, Settings::default());
        let is_kept = settings.hint_bytes_max >= usual.hint_bytes_max
            && settings.hint_age_ms_max >= usual.hint_age_ms_max;
        let (Some(record), true) = (hinted, is_kept) else { return };
        // What was only written may be lost with the power, and is not there to be handed over.
        if !self.machines[n].disk.visible(key).is_some_and(|stored| covers(stored, &record)) {
            return;
        }
        let at_target = self.machines.iter().find(|machine| machine.id == target);
        let has_it = |machine: &Machine| machine.disk.ever_synced(key).any(|stored| covers(stored, &record));
        if at_target.is_some_and(|machine| !has_it(machine)) {
            let what = format!("machine {n} ends its hint for {target}, which does not have {record:?}");
            self.violate(Violation::new(Checker::HintsEndHeard, key, what));
        }
    }

    fn check_accepted(&mut self, n: usize, link: LinkId) {
        let Some(hello) = self.network.offered(link, n) else { return };
        if hello.header.to != self.machines[n].id {
            let what = format!("machine {n} accepts {hello:?}, which is meant for somebody else");
            return self.violate(Violation::of_the_world(Checker::StrayFramesAreIgnored, what));
        }
        let known = self.machines[n].disk.state.peers.get(&hello.header.from);
        if known != Some(&(hello.header.generation, hello.nonce)) {
            let what = format!("machine {n} accepts {hello:?}, and has {known:?} on disk");
            self.violate(Violation::of_the_world(Checker::IdentitiesAreDurable, what));
        }
    }

    pub(crate) fn check_message(&mut self, n: usize, link: LinkId, message: &Message) {
        let to = self.network.peer(link, n).map(|peer| self.machines[peer].id);
        let Some(to) = to else { return };
        self.note_sent(n, to, message);
        match message {
            Message::Write(Write { call, record, origin: Origin::Client { .. }, key, .. }) => {
                self.check_issued(n, key, (record.stamp, *call));
            }
            // The same stamp may have been offered to a replica here before, and be offered to others much later.
            Message::Mint(Mint { key, change, .. }) => self.check_issued_below_ceiling(n, key, change.stamp),
            Message::WriteAnswer { call, outcome, .. } => self.check_write_answer(n, (to, *call), outcome),
            Message::MintAnswer { call, outcome, .. } => self.check_mint_answer(n, (to, *call), outcome),
            Message::ReadAnswer { call, outcome, .. } => self.check_read_answer(n, (to, *call), outcome),
            Message::ScanAnswer { call, outcome, .. } => self.check_scan_answer(n, (to, *call), outcome),
            Message::Write(_)
            | Message::Read { .. }
            | Message::Scan { .. }
            | Message::Hint { .. }
            | Message::InitAccepted { .. } => {}
        }
    }

    fn note_sent(&mut self, n: usize, to: NodeId, message: &Message) {
        let partitions = self.layout.partitions;
        let (call, partition) = match message {
            Message::Write(Write { call, key, .. })
            | Message::Mint(Mint { call, key, .. })
            | Message::Read { call, key, .. } => (*call, key.partition(partitions)),
            Message::Scan { call, range } => (*call, range.partition),
            _ => return,
        };
        // Many repairs of many partitions share the call that nobody waits for.
        if call.operation != 0 {
            self.machines[n].sent.insert((to, call), partition);
        }
    }

    /// Rule 6: whatever happens to the clock, a node's stamps only grow, from one life to the next, and are below
    /// the ceiling that is on disk.
    fn check_issued(&mut self, n: usize, key: &RecordKey, (stamp, call): (Stamp, Call)) {
        // What was sent before is sent again to others, under the stamp that it has.
        if self.machines[n].issued.get(&call) == Some(&stamp) {
            return;
        }
        let last = self.machines[n].last_issued;
        if self.machines[n].issued.insert(call, stamp).is_some() || last.is_some_and(|last| last >= stamp) {
            let what = format!("machine {n} issued {last:?}, and then {stamp:?} for {call:?}");
            self.violate(Violation::new(Checker::StampsOfANodeGrow, key, what));
        }
        self.machines[n].last_issued = Some(stamp);
        self.check_issued_below_ceiling(n, key, stamp);
    }

    fn check_issued_below_ceiling(&mut self, n: usize, key: &RecordKey, stamp: Stamp) {
        let machine = &self.machines[n];
        let ceiling_ms = machine.disk.state.ceiling_ms;
        if stamp.actor() == machine.actor && stamp.millis() >= ceiling_ms {
            let what = format!("machine {n} issued {stamp:?}, the ceiling on its disk being {ceiling_ms}");
            self.violate(Violation::new(Checker::StampsAreBelowTheCeiling, key, what));
        }
    }

    /// What the answer is about; an answer to a question that nobody may ask is a broken promise.
    fn question(&mut self, n: usize, asker: (NodeId, Call)) -> Option<(Message, bool)> {
        if asker.1.operation == 0 {
            return None;
        }
        let asked = self.machines[n].asked.get(&asker).cloned();
        if asked.is_none() {
            let what = format!("machine {n} answers {asker:?}, which only a stray frame has asked");
            self.violate(Violation::of_the_world(Checker::StrayFramesAreIgnored, what));
        }
        asked
    }

    fn check_write_answer(&mut self, n: usize, asker: (NodeId, Call), outcome: &WriteOutcome) {
        let Some((Message::Write(Write { key, record, origin, durability, .. }), is_late)) =
            self.question(n, asker)
        else {
            return;
        };
        if let WriteOutcome::Superseded(_) = outcome {
            self.coverage.count(Path::Superseded);
        }
        let disk = &self.machines[n].disk;
        let is_kept = match outcome {
            WriteOutcome::Held(Durability::Synced) => {
                disk.ever_synced(&key).any(|stored| covers(stored, &record))
            }
            WriteOutcome::Held(Durability::Periodic) if durability == Durability::Synced => false,
            WriteOutcome::Held(Durability::Periodic) => {
                disk.visible(&key).is_some_and(|stored| covers(stored, &record))
            }
            WriteOutcome::Superseded(by) => disk.visible(&key).is_some_and(|stored| stored.stamp >= *by),
            WriteOutcome::Refused(refusal) => return self.check_refusal(n, (&key, origin), *refusal),
        };
        // What is added to a record that is known to be damaged may never be read again.
        if !is_kept || self.machines[n].damaged.contains(&key) {
            let what = format!("machine {n} says {outcome:?} of {record:?}");
            self.violate(Violation::new(Checker::HeldIsOnDisk, &key, what));
        }
        self.check_late(n, &key, is_late);
    }

    fn check_late(&mut self, n: usize, key: &RecordKey, is_late: bool) {
        if is_late {
            let what = format!("machine {n} took a write of {key:?} after its deadline");
            self.violate(Violation::new(Checker::LateWritesAreRefused, key, what));
        }
    }

    fn check_refusal(&mut self, n: usize, (key, origin): (&RecordKey, Origin), refusal: Refusal) {
        match refusal {
            Refusal::DeadlinePassed => self.coverage.count(Path::RefusedAfterItsDeadline),
            Refusal::ClockSkew => self.coverage.count(Path::RefusedForClockSkew),
            Refusal::DiskFull => self.coverage.count(Path::RefusedForWantOfSpace),
            Refusal::InDoubt => self.coverage.count(Path::RefusedInDoubt),
            Refusal::Overloaded
            | Refusal::NotReplica
            | Refusal::NotInitialized
            | Refusal::TooManySiblings => {}
        }
        if origin == Origin::Repair && matches!(refusal, Refusal::DeadlinePassed | Refusal::ClockSkew) {
            let what = format!("machine {n} refuses a repair of {key:?}: {refusal:?}");
            self.violate(Violation::new(Checker::RepairsAreNotRefusedForTheirAge, key, what));
        }
    }

    fn check_mint_answer(&mut self, n: usize, asker: (NodeId, Call), outcome: &MintOutcome) {
        let Some((Message::Mint(Mint { key, .. }), is_late)) = self.question(n, asker) else { return };
        let MintOutcome::Minted { record, .. } = outcome else { return };
        if let Body::Siblings(siblings) = &record.body
            && siblings.distinct().len() > SIBLINGS_MAX
        {
            let what = format!("machine {n} takes sibling number {}", siblings.distinct().len());
            self.violate(Violation::new(Checker::SiblingsAreCapped, &key, what));
        }
        if !self.machines[n].disk.ever_synced(&key).any(|stored| covers(stored, record)) {
            let what = format!("machine {n} says that it minted {record:?}");
            self.violate(Violation::new(Checker::HeldIsOnDisk, &key, what));
        }
        self.check_late(n, &key, is_late);
    }

    fn check_read_answer(&mut self, n: usize, asker: (NodeId, Call), outcome: &ReadOutcome) {
        let Some((Message::Read { key, .. }, _)) = self.question(n, asker) else { return };
        let version = match outcome {
            ReadOutcome::Digest(version) => *version,
            ReadOutcome::Full(record) => record.version(),
            ReadOutcome::Missing if self.machines[n].disk.visible(&key).is_some() => {
                let what = format!("machine {n} says that it has nothing of {key:?}");
                return self.violate(Violation::new(Checker::MissingIsMissing, &key, what));
            }
            ReadOutcome::Missing | ReadOutcome::Refused(_) => return,
        };
        let shown = |record: &Record| record.version() == version;
        self.check_visible(n, &key, shown);
    }

    fn check_scan_answer(&mut self, n: usize, asker: (NodeId, Call), outcome: &ScanOutcome) {
        let Some((Message::Scan { .. }, _)) = self.question(n, asker) else { return };
        let ScanOutcome::Page(page) = outcome else { return };
        for (key, record) in &page.entries {
            self.check_visible(n, key, |stored| stored == record);
        }
    }

    /// Rule 3: what a replica shows is synced on its disk, or written where nobody asked for more.
    fn check_visible(&mut self, n: usize, key: &RecordKey, is_shown: impl Fn(&Record) -> bool) {
        let disk = &self.machines[n].disk;
        let visible = disk.visible(key).filter(|record| is_shown(record));
        let is_synced = |record: &&Record| disk.synced(key).is_some_and(|stored| covers(stored, record));
        let is_loose = self.class(key) == Class::Loose;
        if visible.filter(|record| is_loose || is_synced(record)).is_none() {
            let (visible, synced) = (disk.visible(key), disk.synced(key));
            let what = format!(
                "machine {n} shows of {key:?} what its disk does not have, which is {visible:?}, synced {synced:?}"
            );
            self.violate(Violation::new(Checker::VisibleMeansSynced, key, what));
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
                if !self.machines[n].disk.is_rotten(&key) {
                    let what = format!("machine {n} calls a whole record damaged");
                    self.violate(Violation::new(Checker::DoubtHasAReason, &key, what));
                }
                let in_generation = self.machines[n].disk.state.generation;
                let floor = self.floors.get(&key).copied();
                let doubted = Doubted { in_generation, floor, is_healed: false };
                self.machines[n].doubted.insert(key, doubted);
            }
            Alarm::Healed { key } => {
                self.machines[n].damaged.remove(&key);
                if let Some(doubted) = self.machines[n].doubted.get_mut(&key) {
                    doubted.is_healed = true;
                }
                if !self.machines[n].disk.has_rotten() {
                    self.hurt.remove(&n);
                }
            }
            // A rolled-back or cloned disk, set aside by now: the process ends.
            Alarm::StaleGeneration { .. } => {
                self.coverage.count(Path::StaleGenerationRefused);
                self.end_for_good(n);
            }
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
        if let Some(other) = self.machines.iter().find(|machine| machine.disk.state.membership.is_none()) {
            let what = format!("machine {n} serves, and {} has accepted no layout", other.id);
            self.violate(Violation::of_the_world(Checker::ServingMeansAllAccepted, what));
        }
    }

    /// The machines that hold this key and can be asked.
    pub(crate) fn replicas(&self, key: &RecordKey) -> Vec<usize> {
        let sets = self.layout.replica_sets(key.partition(self.layout.partitions));
        let machine = |node: NodeId| self.machines.iter().position(|machine| machine.id == node);
        let replicas = sets.nodes().into_iter().filter_map(machine);
        replicas.filter(|n| self.machines[*n].standing != Standing::Gone).collect()
    }

    pub(crate) fn check_convergence(&mut self, key: &RecordKey) {
        let replicas = self.replicas(key);
        let held: Vec<_> = replicas.iter().map(|n| (n, self.machines[*n].disk.synced(key))).collect();
        let are_equal = held.windows(2).all(|pair| pair[0].1 == pair[1].1);
        // A replica whose record has rotted refuses the key until it is replaced.
        let is_rotten = replicas.iter().any(|n| self.machines[*n].disk.is_rotten(key));
        if !are_equal && !is_rotten {
            let what = format!("{held:?}");
            self.violate(Violation::new(Checker::ReplicasConverge, key, what));
        }
    }

    /// Rule 27: what waits in a node is bounded.
    pub(crate) fn check_bounds(&mut self, n: usize) {
        let settings = &self.plan.settings;
        let Some(node) = &self.machines[n].node else { return };
        let status = node.status(self.machines[n].now(self.now_ms));
        let writes_max = settings.writes_max + settings.writes_max / 4 + self.plan.clients;
        let (requests, writes) = (status.requests_under_way, status.writes_under_way);
        let hints = status.hints.bytes;
        if requests > settings.requests_max || writes > writes_max || hints > settings.hint_bytes_max {
            let what =
                format!("machine {n} has {requests} requests, {writes} writes and {hints} bytes of hints");
            self.violate(Violation::of_the_world(Checker::QueuesStayWithinTheirBounds, what));
        }
    }
}
