//! What nodes say to each other, judged at the step at which it is said: an answer is about what was asked, and what
//! it says of a disk is so.

use std::collections::BTreeMap;

use keystore_core::effect::{Effect, Event, LinkId};
use keystore_core::id::{Epoch, Generation, NodeId};
use keystore_core::layout::Layout;
use keystore_core::message::{
    Call, Header, Hello, Message, Mint, MintOutcome, Origin, ReadOutcome, Refusal, ScanOutcome, Want, Write,
    WriteOutcome,
};
use keystore_core::node::Node;
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::quorum::Durability;
use keystore_core::record::Record;

use crate::aim::Moment;
use crate::coverage::Path;
use crate::invariants::covers;
use crate::machine::Machine;
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
        let (link, header, messages) = match event {
            Event::Frame { link, header, messages } => (*link, header, messages),
            // A hello of another incarnation, or by one that has departed, is refused, and nothing is noted of it.
            Event::LinkOffered { hello, .. }
                if hello.header.to == self.machines[n].id
                    && self.goes_by(n).is_none_or(|layout| {
                        let is_behind = hello.header.epoch <= layout.epoch;
                        let is_member =
                            layout.member(hello.header.from).is_some_and(|member| !member.is_lost);
                        layout.incarnation == hello.header.incarnation && (is_member || !is_behind)
                    })
                    && !self.is_of_a_copy(hello)
                    && !self.has_met_a_copy(n, hello) =>
            {
                return self.note_generation(n, hello.header.from, hello.header.generation);
            }
            _ => return,
        };
        let is_stray = self.is_stray(n, link, header);
        if !is_stray {
            for message in messages {
                self.note_noted(n, header, message);
                if let Message::Hint { target, key } = message
                    && header.epoch == self.layout_at(n).epoch
                {
                    self.note_hint(n, *target, key);
                }
            }
        }
        let now = self.machines[n].now(self.now_ms);
        let latest_ms = now.wall_ms.saturating_sub(self.plan.settings.skew_ms_max);
        let epoch = self.goes_by(n).map_or(Epoch(0), |layout| layout.epoch);
        for message in messages {
            let (call, deadline_ms) = match message {
                Message::Write(Write { call, origin: Origin::Client { deadline_wall_ms }, .. })
                | Message::Mint(Mint { call, deadline_wall_ms, .. }) => (*call, *deadline_wall_ms),
                Message::Write(Write { call, .. })
                | Message::Read { call, .. }
                | Message::Scan { call, .. }
                | Message::Salvage { call, .. } => (*call, u64::MAX),
                _ => continue,
            };
            if call.operation == 0 || is_stray {
                continue;
            }
            let asked = &mut self.machines[n].asked;
            let was_in_time = asked.get(&(header.from, call)).is_some_and(|(_, is_late)| !is_late);
            // What waits for a layout is looked at later, and by another clock if that is set meanwhile.
            let waits = header.epoch > epoch;
            let is_late = deadline_ms < latest_ms && !was_in_time && !waits;
            asked.insert((header.from, call), (message.clone(), is_late));
            self.machines[n].asked_under.insert((header.from, call), (header.incarnation, header.epoch));
        }
    }

    /// The layout that a machine has accepted.
    fn goes_by(&self, n: usize) -> Option<&Layout> {
        self.machines[n].node.as_ref().and_then(Node::layout)
    }

    /// True if it comes from a disk that was rolled back or cloned, however often that was started since.
    pub(crate) fn is_of_a_copy(&self, hello: &Hello) -> bool {
        // Its process may have raised its generation since.
        let is_its = |Machine { disk, is_stale, .. }: &Machine| {
            let since = disk.state.generation.0.checked_sub(hello.header.generation.0);
            let nonce = since.and_then(|since| disk.state.lineage.before(since));
            *is_stale && nonce == Some(hello.lineage.present())
        };
        self.machines.iter().any(is_its)
    }

    /// True if a machine has met a copy of whoever says this first, as one may that belongs to no cluster yet: it takes the
    /// original for the copy.
    fn has_met_a_copy(&self, n: usize, hello: &Hello) -> bool {
        let met = self.machines[n].disk.state.peers.get(&hello.header.from);
        met.is_some_and(|(generation, nonce)| hello.nonce_at(*generation).is_some_and(|its| its != *nonce))
    }

    fn note_generation(&mut self, n: usize, of: NodeId, generation: Generation) {
        if generation > self.known_generation(n, of) {
            self.count_raised(n, of, generation);
        }
        let heard = self.machines[n].heard.entry(of).or_default();
        *heard = generation.max(*heard);
    }

    /// What an answer says of the generations of others.
    fn note_noted(&mut self, n: usize, header: &Header, message: &Message) {
        let from = header.from;
        if let Message::ReadAnswer { call, outcome: ReadOutcome::Full(_) | ReadOutcome::Missing, .. } =
            message
            && let Some((_, tellers)) = self.machines[n].told_of.get_mut(&call.operation)
        {
            tellers.insert(from, header.generation);
        }
        let (call, noted) = match message {
            Message::WriteAnswer { call, noted, .. }
            | Message::MintAnswer { call, noted, .. }
            | Message::ReadAnswer { call, noted, .. }
            | Message::ScanAnswer { call, noted, .. } => (call, noted),
            _ => return,
        };
        // What is of an earlier epoch was asked before, and of a later one is not looked at yet.
        if header.epoch != self.layout_at(n).epoch {
            return;
        }
        // Nothing is heard from an answer to what has ended; here it surely has not.
        let request = self.machines[n].operations.get(&call.operation);
        if request.is_none_or(|request| !self.machines[n].requests.contains_key(request)) {
            return;
        }
        let Some(partition) = self.machines[n].sent.get(&(from, *call)).copied() else { return };
        for (node, generation) in self.layout_at(n).replicas(partition).into_iter().zip(noted) {
            self.note_generation(n, node, *generation);
        }
    }

    /// The link over which a stray frame comes.
    pub(crate) fn stray_link(&self, n: usize, event: &Event) -> Option<LinkId> {
        match event {
            Event::Frame { link, header, .. } if self.is_stray(n, *link, header) => Some(*link),
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
    /// It is meant for somebody else, or comes from another incarnation of the cluster, or another generation than the
    /// latest, or than the one that has said hello.
    fn is_stray(&self, n: usize, link: LinkId, header: &Header) -> bool {
        let machine = &self.machines[n];
        let known = self.known_generation(n, header.from);
        let ours = self.goes_by(n);
        let said = self.network.offered(link, n).map(|hello| hello.header.generation);
        header.to != machine.id
            || header.cluster != self.layout.cluster
            || ours.is_some_and(|layout| layout.incarnation != header.incarnation)
            || known > header.generation
            || said.is_some_and(|said| said != header.generation)
    }

    pub(crate) fn check_message(&mut self, n: usize, (link, header): (LinkId, &Header), message: &Message) {
        if self.network.peer(link, n).is_none() {
            return;
        }
        // Whoever was at the other end may have become somebody else.
        let to = header.to;
        self.note_sent(n, to, message);
        self.check_noted(n, header, message);
        self.check_said_of_layouts(n, header, message);
        self.check_epoch_of_answer(n, header, message);
        match message {
            Message::Write(Write { call, record, origin: Origin::Client { .. }, key, .. }) => {
                self.check_issued(n, key, (record.stamp, *call));
            }
            // The same stamp may have been offered to a replica here before, and be offered to others much later.
            Message::Mint(Mint { key, change, .. }) => self.check_own_stamp(n, key, change.stamp),
            Message::WriteAnswer { call, outcome, .. } => self.check_write_answer(n, (to, *call), outcome),
            Message::MintAnswer { call, outcome, .. } => self.check_mint_answer(n, (to, *call), outcome),
            Message::ReadAnswer { call, outcome, .. } => self.check_read_answer(n, (to, *call), outcome),
            Message::ScanAnswer { call, outcome, .. } => self.check_scan_answer(n, (to, *call), outcome),
            Message::Scan { call, range, .. } => self.note_page_wanted(n, (to, *call), range),
            Message::Write(_)
            | Message::Read { .. }
            | Message::Salvage { .. }
            | Message::Hint { .. }
            | Message::InitAccepted { .. }
            | Message::Layout { .. }
            | Message::Standing(_)
            | Message::Paxos { .. } => {}
        }
    }

    fn note_sent(&mut self, n: usize, to: NodeId, message: &Message) {
        let partitions = self.layout.partitions;
        let (call, partition) = match message {
            Message::Write(Write { call, key, .. })
            | Message::Mint(Mint { call, key, .. })
            | Message::Read { call, key, .. } => (*call, key.partition(partitions)),
            Message::Scan { call, range, .. } | Message::Salvage { call, range } => (*call, range.partition),
            _ => return,
        };
        // Many repairs of many partitions share the call that nobody waits for.
        if call.operation != 0 {
            self.machines[n].sent.insert((to, call), partition);
            let is_for_a_client = self.machines[n].operations.contains_key(&call.operation);
            if let Message::Read { key, want, .. } = message {
                // An attempt to heal may begin in the same step as a request: it asks for all of the record.
                let machine = &self.machines[n];
                let heals = match machine.begins {
                    Some(_) => *want == Want::Full && machine.in_doubt.contains(key),
                    None => !is_for_a_client,
                };
                if heals {
                    self.machines[n].told_of.entry(call.operation).or_insert((key.clone(), BTreeMap::new()));
                }
            }
            if let Some(request) = self.machines[n].begins {
                self.machines[n].operations.insert(call.operation, request);
            }
        }
    }

    /// What a node says of generations, its own among them, is on its disk: who hears it counts on that.
    fn check_noted(&mut self, n: usize, header: &Header, message: &Message) {
        self.check_said(n, header);
        if let Message::WriteAnswer { call, noted, .. }
        | Message::MintAnswer { call, noted, .. }
        | Message::ReadAnswer { call, noted, .. }
        | Message::ScanAnswer { call, noted, .. } = message
            && let Some((question, _)) = self.machines[n].asked.get(&(header.to, *call))
            && let Some(partition) = self.partition_of(question)
        {
            let said: Vec<_> =
                self.layout_at(n).replicas(partition).into_iter().zip(noted.iter().copied()).collect();
            self.check_durable(n, &said);
        }
    }

    /// The same of what a machine says of itself, in a hello or with a message.
    pub(crate) fn check_said(&mut self, n: usize, header: &Header) {
        self.check_durable(n, &[(header.from, header.generation)]);
    }

    fn check_durable(&mut self, n: usize, said: &[(NodeId, Generation)]) {
        let state = &self.machines[n].disk.state;
        let on_disk = |node: NodeId| match node == self.machines[n].id {
            true => state.generation,
            false => state.peers.get(&node).map(|(generation, _)| *generation).unwrap_or_default(),
        };
        if let Some((node, generation)) = said.iter().find(|(node, said)| *said > on_disk(*node)) {
            let what =
                format!("machine {n} says generation {generation} of {node}, and has {}", on_disk(*node));
            self.violate(Violation::of_the_world(Checker::NotedIsDurable, what));
        }
    }

    /// Of what is asked.
    fn partition_of(&self, message: &Message) -> Option<Partition> {
        match message {
            Message::Write(Write { key, .. })
            | Message::Mint(Mint { key, .. })
            | Message::Read { key, .. } => Some(key.partition(self.layout.partitions)),
            Message::Scan { range, .. } | Message::Salvage { range, .. } => Some(range.partition),
            _ => None,
        }
    }

    /// A replica that has called a record damaged says nothing of it before it is healed.
    pub(crate) fn check_undoubted(&mut self, n: usize, key: &RecordKey) {
        let partition = key.partition(self.layout.partitions);
        let machine = &self.machines[n];
        if machine.in_doubt.contains(key) || machine.partitions_in_doubt.contains(&partition) {
            let what = format!("machine {n} speaks of {key:?}, for which it is in doubt");
            self.violate(Violation::new(Checker::InDoubtSaysNothing, key, what));
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
        self.check_undoubted(n, &key);
        self.check_salvaged(n, &key);
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
            Refusal::StaleEpoch => self.coverage.count(Path::RefusedForItsEpoch),
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
        if !self.machines[n].disk.ever_synced(&key).any(|stored| covers(stored, record)) {
            let what = format!("machine {n} says that it minted {record:?}");
            self.violate(Violation::new(Checker::HeldIsOnDisk, &key, what));
        }
        self.check_undoubted(n, &key);
        self.check_salvaged(n, &key);
        self.check_late(n, &key, is_late);
    }

    fn check_read_answer(&mut self, n: usize, asker: (NodeId, Call), outcome: &ReadOutcome) {
        let Some((Message::Read { key, .. }, _)) = self.question(n, asker) else { return };
        if !matches!(outcome, ReadOutcome::Refused(_)) {
            self.check_undoubted(n, &key);
            self.check_salvaged(n, &key);
            if self.is_healing(asker) {
                self.moment(Moment::Told, n, &key);
            }
        }
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
        let range = match self.question(n, asker) {
            Some((Message::Scan { range, .. }, _)) => range,
            Some((Message::Salvage { .. }, _)) => return self.check_left_page(n, outcome),
            _ => return,
        };
        self.check_moved(n, asker, (&range, outcome));
        if !matches!(outcome, ScanOutcome::Refused(_)) {
            self.check_partition_salvaged(n, range.partition);
        }
        let (entries, until) = match outcome {
            ScanOutcome::Page(page) => (&page.entries, page.until.as_ref()),
            ScanOutcome::Lacking(lacking) => (&lacking.entries, lacking.until.as_ref()),
            ScanOutcome::Differs | ScanOutcome::Refused(_) => return,
        };
        let partitions = self.layout.partitions;
        let is_in = |key: &&RecordKey| {
            key.partition(partitions) == range.partition
                && key.encoded().starts_with(&range.prefix)
                && range.after.as_ref().is_none_or(|after| key.place() > after.place())
                && until.is_none_or(|until| key.place() <= until.place())
        };
        if let Some(key) = self.machines[n].in_doubt.iter().find(is_in).cloned() {
            self.check_undoubted(n, &key);
        }
        if self.machines[n].partitions_in_doubt.contains(&range.partition) {
            let what = format!("machine {n} shows a page of {}, for which it is in doubt", range.partition);
            self.violate(Violation::of_the_world(Checker::InDoubtSaysNothing, what));
        }
        for (key, record) in entries {
            self.check_visible(n, key, |stored| stored == record);
        }
    }

    /// True if an answer goes to a replica that heals a key by it.
    fn is_healing(&self, (asker, call): (NodeId, Call)) -> bool {
        let asker = self.machines.iter().find(|machine| machine.id == asker);
        asker.is_some_and(|machine| machine.told_of.contains_key(&call.operation))
    }

    /// Rule 3: what a replica shows is synced on its disk, or written where nobody asked for more.
    pub(crate) fn check_visible(&mut self, n: usize, key: &RecordKey, is_shown: impl Fn(&Record) -> bool) {
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
