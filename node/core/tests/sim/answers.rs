//! What nodes say to each other, judged at the step at which it is said: an answer is about what was asked, and what
//! it says of a disk is so.

use std::collections::BTreeSet;

use keystore_core::causal::SIBLINGS_MAX;
use keystore_core::effect::{Effect, Event, LinkId};
use keystore_core::id::{Generation, NodeId};
use keystore_core::message::{
    Call, Header, Message, Mint, MintOutcome, Origin, ReadOutcome, Refusal, ScanOutcome, Write, WriteOutcome,
};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

use crate::coverage::Path;
use crate::invariants::covers;
use crate::plan::Class;
use crate::violation::{Checker, Violation};
use crate::world::World;

impl World {
    /// The highest generation of a node that a machine knows of: its own is on its disk.
    pub(crate) fn known_generation(&self, n: usize, of: NodeId) -> Generation {
        let machine = &self.machines[n];
        if machine.id == of {
            return machine.disk.state.generation;
        }
        let noted = machine.disk.state.peers.get(&of).map(|(generation, _)| *generation);
        noted.max(machine.heard.get(&of).copied()).unwrap_or_default()
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
        if let Message::ReadAnswer { call, outcome: ReadOutcome::Full(_) | ReadOutcome::Missing, .. } =
            message
            && let Some((_, tellers)) = self.machines[n].told_of.get_mut(&call.operation)
        {
            tellers.insert(from);
        }
        let (call, noted) = match message {
            Message::WriteAnswer { call, noted, .. }
            | Message::MintAnswer { call, noted, .. }
            | Message::ReadAnswer { call, noted, .. }
            | Message::ScanAnswer { call, noted, .. } => (call, noted),
            _ => return,
        };
        // Nothing is heard from an answer to what has ended; here it surely has not.
        let request = self.machines[n].operations.get(&call.operation);
        if request.is_none_or(|request| !self.machines[n].requests.contains_key(request)) {
            return;
        }
        let Some(partition) = self.machines[n].sent.get(&(from, *call)).copied() else { return };
        for (node, generation) in self.layout.replicas(partition).into_iter().zip(noted) {
            self.note_generation(n, node, *generation);
        }
    }

    /// The link over which a stray frame comes.
    pub(crate) fn stray_link(&self, n: usize, event: &Event) -> Option<LinkId> {
        match event {
            Event::Frame { link, header, .. } if self.is_stray(n, header) => Some(*link),
            _ => None,
        }
    }

    /// What a stray frame comes over is closed.
    pub(crate) fn check_stray(&mut self, n: usize, link: LinkId, effects: &[Effect]) {
        let is_closed = effects.iter().any(|effect| *effect == Effect::CloseLink { link });
        if !is_closed && !self.machines[n].is_stale {
            let what = format!("machine {n} takes a stray frame over {link:?}");
            self.violate(Violation::of_the_world(Checker::StrayFramesAreIgnored, what));
        }
    }

    /// A frame that may change nothing: it is meant for somebody else, or its sender has been heard of as a later
    /// generation, durably.
    fn is_stray(&self, n: usize, header: &Header) -> bool {
        let machine = &self.machines[n];
        let known = self.known_generation(n, header.from);
        header.to != machine.id || header.cluster != self.layout.cluster || known > header.generation
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
            if let (Message::Read { key, .. }, None) = (message, self.machines[n].begins) {
                self.machines[n].told_of.entry(call.operation).or_insert((key.clone(), BTreeSet::new()));
            }
            if let Some(request) = self.machines[n].begins {
                self.machines[n].operations.insert(call.operation, request);
            }
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

    pub(crate) fn check_issued_below_ceiling(&mut self, n: usize, key: &RecordKey, stamp: Stamp) {
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
}
