//! Keys for which this replica is in doubt: it may have lost a record that it acknowledged. For such a key it counts
//! for nothing until it has merged what enough others hold. Where nobody knows which keys these are, or they are too
//! many, the partition is in doubt as a whole ([`partitions`]).
//!
//! Two steps keep an acknowledgement that was given before the loss from counting after it. First a new generation is
//! made durable. Then N - W + 1 other replicas are asked over links of that generation, and each of them noted it
//! durably before it took the link: whatever one of them takes later bears that note, and whoever coordinates it
//! drops what we said before. So everything that was ever acknowledged with us in the quorum is among the answers.
//! Only then does what has come of them take the place of what is damaged.
//!
//! All of this is in memory only, and a start forgets it. That loses nothing: what is damaged is damaged on the disk,
//! so whoever reads it, for an answer, for a page, or to merge something with it, meets it again before anything counts;
//! what was healed was healed key by key, each by all that it takes; and a node calls no partition whole, so that a
//! move may end, before its process has read all that it holds of it ([`crate::transfer`]).

mod partitions;

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::effect::{Alarm, Commit, CommitId, Effect, Entry};
use crate::id::NodeId;
use crate::message::{Call, Message, ReadOutcome, ScanRange, Want};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, PartitionCount, RecordKey};
use crate::quorum::{Durability, ReplicaSets};
use crate::record::Record;

/// How many keys are healed at a time: each holds a record of other replicas in memory.
const HEALS_MAX: usize = 64;
/// How many keys may be in doubt at a time. With one more, its partition is, as a whole.
const DOUBTS_MAX: usize = 16_384;
/// How long the replicas of a key have to answer before they are asked again.
const ANSWER_MS: u64 = 2_000;
/// The pause between two attempts to heal a key: doubled each time, up to the second.
const BACKOFF_MS: (u64, u64) = (250, 15_000);

#[derive(Debug, Default)]
pub(crate) struct Doubts {
    keys: BTreeMap<RecordKey, Doubted>,
    /// When the next attempt to heal a key begins, or the present one has failed.
    due: BTreeSet<(u64, RecordKey)>,
    /// The keys whose replicas are being asked, by the number of the operation.
    asking: BTreeMap<u64, RecordKey>,
    replacing: BTreeMap<CommitId, RecordKey>,
    partitions: partitions::Partitions,
    /// Those of which nobody has been told yet.
    entered: Vec<Partition>,
    /// Something waits for a generation that is later than its doubt, and nobody is making one durable.
    wants_generation: bool,
}

#[derive(Debug)]
struct Doubted {
    since_ms: u64,
    backoff_ms: u64,
    /// It was to leave nothing behind, and perhaps has not.
    was_dropped: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// No generation has been raised since it came into doubt.
    Unraised,
    /// One is being saved.
    Raising,
    /// Until it is due.
    Waiting {
        due_ms: u64,
    },
    Asking(Asking),
    /// What the others hold is being committed.
    Replacing,
}

/// One attempt to heal a key.
#[derive(Debug)]
struct Asking {
    operation: u64,
    sets: ReplicaSets,
    /// The replicas of the new ring, while data moves, that had taken over what the old one held when this began.
    newcomers: BTreeSet<NodeId>,
    replies: BTreeMap<NodeId, Reply>,
    merged: Option<Record>,
    due_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Pending,
    /// It has said what it holds.
    Trusted,
    /// It refused: it may be in doubt itself.
    Failed,
}

impl Doubts {
    pub(crate) fn contains(&self, key: &RecordKey) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(key)
    }

    /// True if an answer about these records, `last` being the last one of a page that was cut, would speak of a key
    /// in doubt.
    pub(crate) fn touch(&self, range: &ScanRange, last: Option<&RecordKey>, context: &Context<'_>) -> bool {
        self.keys.keys().any(|key| {
            context.partition(key) == range.partition
                && key.encoded().starts_with(&range.prefix)
                && range.after.as_ref().is_none_or(|after| key.place() > after.place())
                && last.is_none_or(|last| key.place() <= last.place())
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Those that have been in doubt for the longest time, at most `limit`, and for how many milliseconds.
    pub(crate) fn oldest(&self, limit: usize, now_ms: u64) -> Vec<(RecordKey, u64)> {
        let mut oldest: Vec<_> = self.keys.iter().map(|(key, doubted)| (doubted.since_ms, key)).collect();
        oldest.sort_unstable();
        let for_ms = |since_ms: u64| now_ms.saturating_sub(since_ms);
        oldest.into_iter().take(limit).map(|(since, key)| (key.clone(), for_ms(since))).collect()
    }

    /// A record is damaged. Nothing changes for a key that is in doubt already: what is stored under it does not
    /// count in any case until it is replaced.
    pub(crate) fn enter(&mut self, key: &RecordKey, context: &mut Context<'_>) {
        if self.keys.contains_key(key) {
            return;
        }
        if self.keys.len() >= DOUBTS_MAX {
            self.enter_whole(context.partition(key), context);
            return;
        }
        let doubted = Doubted {
            since_ms: context.now.mono_ms,
            backoff_ms: BACKOFF_MS.0,
            was_dropped: false,
            stage: Stage::Unraised,
        };
        // What came in a frame would keep all of that frame in memory.
        self.keys.insert(key.detached(), doubted);
        self.wants_generation = true;
        if is_on(Mutant::HealsWithoutANewGeneration) {
            self.wants_generation = false;
            self.raise_began();
            self.raised(context.now.mono_ms);
        }
        context.counters.doubts += 1;
        context.effects.push(Effect::Alarm(Alarm::DamagedRecord { key: key.clone() }));
    }

    /// True if a new generation has to be made durable.
    pub(crate) fn want_generation(&self) -> bool {
        self.wants_generation
    }

    /// A new generation is about to be saved: it serves for every key that has come into doubt so far.
    pub(crate) fn raise_began(&mut self) {
        self.wants_generation = false;
        for doubted in self.keys.values_mut() {
            if matches!(doubted.stage, Stage::Unraised) {
                doubted.stage = Stage::Raising;
            }
        }
        self.raise_of_partitions_began();
    }

    /// It is durable and in force, and all links of the one before are closed.
    pub(crate) fn raised(&mut self, now_ms: u64) {
        for (key, doubted) in &mut self.keys {
            if matches!(doubted.stage, Stage::Raising) {
                doubted.stage = Stage::Waiting { due_ms: now_ms };
                self.due.insert((now_ms, key.clone()));
            }
        }
        self.raised_for_partitions();
    }

    /// A peer can be reached again: what waits need not wait longer.
    pub(crate) fn linked(&mut self, now_ms: u64) {
        for (key, doubted) in &mut self.keys {
            if let Stage::Waiting { due_ms } = &mut doubted.stage {
                self.due.remove(&(*due_ms, key.clone()));
                *due_ms = now_ms;
                self.due.insert((now_ms, key.clone()));
            }
        }
    }

    /// When something is to be done next.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// Begins attempts that are due and ends those that take too long. `number` names an operation. What is damaged of a
    /// partition that is being salvaged goes, since nothing of that counts before all that others hold is merged: returns
    /// the commits that drop it, and whether that was tried before.
    pub(crate) fn tend(
        &mut self,
        mut number: impl FnMut() -> u64,
        is_salvaging: impl Fn(Partition) -> bool,
        context: &mut Context<'_>,
    ) -> Vec<(Commit, bool)> {
        let mut drops = Vec::new();
        while let Some((due_ms, _)) = self.due.first()
            && *due_ms <= context.now.mono_ms
            && let Some((_, key)) = self.due.pop_first()
        {
            match self.keys.get(&key).map(|doubted| &doubted.stage) {
                Some(Stage::Asking(_)) => self.give_up(&key, context),
                Some(Stage::Waiting { .. })
                    if is_salvaging(context.partition(&key)) && !is_on(Mutant::TheDamagedIsWaitedFor) =>
                {
                    let again = self.keys.get_mut(&key);
                    let again =
                        again.is_some_and(|doubted| std::mem::replace(&mut doubted.was_dropped, true));
                    drops.push((self.replace(context.next_commit(), key, None), again));
                }
                Some(Stage::Waiting { .. }) => self.begin(key, &mut number, context),
                Some(Stage::Unraised | Stage::Raising | Stage::Replacing) | None => {}
            }
        }
        drops
    }

    /// Leaves nothing of what is damaged in these partitions. Not before a later generation: whoever counts anew under the
    /// old one would give a dot twice.
    pub(crate) fn drop_keys(&mut self, of: impl Fn(Partition) -> bool, context: &mut Context<'_>) {
        let now_ms = context.now.mono_ms;
        let is_open =
            |doubted: &Doubted| matches!(doubted.stage, Stage::Waiting { due_ms } if due_ms <= now_ms);
        let dropped =
            self.keys.iter().filter(|(key, doubted)| is_open(doubted) && of(context.partition(key)));
        for key in dropped.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let commit = self.replace(context.next_commit(), key, None);
            context.effects.push(Effect::Commit(commit));
        }
    }

    /// Asks all other replicas of a key, unless too few of them can be reached.
    fn begin(&mut self, key: RecordKey, number: impl FnOnce() -> u64, context: &mut Context<'_>) {
        let partition = context.partition(&key);
        let sets = context.layout.replica_sets(partition);
        let is_open = self.asking.len() < HEALS_MAX;
        let is_reachable = |node: &NodeId| context.is_reachable(*node);
        let newcomers: BTreeSet<_> =
            sets.nodes().filter(|node| context.has_taken_over(*node, partition)).collect();
        if !is_open || !sets.makes_whole(context.me, is_reachable, |node| newcomers.contains(node)) {
            return self.wait(&key, is_open, context);
        }
        let operation = number();
        let call = Call { operation, attempt: 0 };
        let others = sets.nodes().filter(|node| *node != context.me && context.is_reachable(*node));
        let replies: BTreeMap<_, _> = others.map(|node| (node, Reply::Pending)).collect();
        for node in replies.keys() {
            context.send(*node, Message::Read { call, key: key.clone(), want: Want::Full });
        }
        let due_ms = context.now.mono_ms + ANSWER_MS;
        let Some(doubted) = self.keys.get_mut(&key) else { return };
        doubted.stage = Stage::Asking(Asking { operation, sets, newcomers, replies, merged: None, due_ms });
        self.asking.insert(operation, key.clone());
        self.due.insert((due_ms, key));
    }

    /// Waits for the next attempt, longer after each that came to nothing.
    fn wait(&mut self, key: &RecordKey, is_longer: bool, context: &Context<'_>) {
        let Some(doubted) = self.keys.get_mut(key) else { return };
        let due_ms = match is_on(Mutant::HealsAreTriedOnce) {
            true => u64::MAX,
            false => context.now.mono_ms + doubted.backoff_ms,
        };
        if is_longer {
            doubted.backoff_ms = (doubted.backoff_ms * 2).min(BACKOFF_MS.1);
        }
        doubted.stage = Stage::Waiting { due_ms };
        self.due.insert((due_ms, key.clone()));
    }

    fn give_up(&mut self, key: &RecordKey, context: &Context<'_>) {
        if let Some(Doubted { stage: Stage::Asking(asking), .. }) = self.keys.get(key) {
            self.due.remove(&(asking.due_ms, key.clone()));
            self.asking.remove(&asking.operation);
            self.wait(key, true, context);
        }
    }

    /// Nothing is concluded from an answer: all are asked once more.
    pub(crate) fn ask_again(&mut self, call: Call, context: &Context<'_>) {
        if let Some(key) = self.asking.get(&call.operation).cloned() {
            self.give_up(&key, context);
        }
    }

    /// The replicas of the key that an operation asks about, if it is one of ours.
    pub(crate) fn sets_of(&self, operation: u64) -> Option<&ReplicaSets> {
        match &self.keys.get(self.asking.get(&operation)?)?.stage {
            Stage::Asking(asking) => Some(&asking.sets),
            _ => None,
        }
    }

    /// A replica has answered; returns what is to take the place of the damaged record once enough have.
    pub(crate) fn answered(
        &mut self,
        from: NodeId,
        call: Call,
        outcome: ReadOutcome,
        context: &Context<'_>,
    ) -> Option<(RecordKey, Option<Record>)> {
        let key = self.asking.get(&call.operation)?.clone();
        let Some(Doubted { stage: Stage::Asking(asking), .. }) = self.keys.get_mut(&key) else { return None };
        let reply = asking.replies.get_mut(&from).filter(|reply| **reply == Reply::Pending)?;
        *reply = match outcome {
            ReadOutcome::Missing => Reply::Trusted,
            ReadOutcome::Full(record) => {
                asking.merged = Some(match asking.merged.take() {
                    Some(merged) => merged.merge(record),
                    None => record,
                });
                Reply::Trusted
            }
            ReadOutcome::Digest(_) | ReadOutcome::Refused(_) => Reply::Failed,
        };
        if asking.makes(|reply| reply == Reply::Trusted, context) {
            let (merged, due_ms) = (asking.merged.take(), asking.due_ms);
            self.due.remove(&(due_ms, key.clone()));
            self.asking.remove(&call.operation);
            return Some((key, merged));
        }
        if !asking.makes(|reply| reply != Reply::Failed, context) {
            self.give_up(&key, context);
        }
        None
    }

    /// What others hold takes the place of the damaged record.
    pub(crate) fn replace(&mut self, id: CommitId, key: RecordKey, record: Option<Record>) -> Commit {
        if let Some(doubted) = self.keys.get_mut(&key) {
            doubted.stage = Stage::Replacing;
        }
        self.replacing.insert(id, key.clone());
        Commit { id, entry: Entry::Replace { key, record }, durability: Durability::Synced }
    }

    /// A commit has ended; true if it was one of ours. With it, the key is no longer in doubt, unless the log has
    /// refused it.
    pub(crate) fn replaced(&mut self, commit: CommitId, is_done: bool, context: &mut Context<'_>) -> bool {
        let Some(key) = self.replacing.remove(&commit) else { return false };
        if is_done {
            self.keys.remove(&key);
            context.counters.heals += 1;
            context.effects.push(Effect::Alarm(Alarm::Healed { key }));
        } else {
            self.wait(&key, true, context);
        }
        true
    }

    /// Another layout is in force: attempts begin anew under it, and keys that are no longer ours are nobody's concern.
    pub(crate) fn begin_epoch(&mut self, context: &Context<'_>) {
        self.stop_asking(context);
        let is_ours = |key: &RecordKey| context.layout.is_replica(context.partition(key), context.me);
        self.keys.retain(|key, doubted| is_ours(key) || matches!(doubted.stage, Stage::Replacing));
        self.due.retain(|(_, key)| self.keys.contains_key(key));
        self.partitions.retain(|partition, _| context.layout.is_replica(*partition, context.me));
    }

    /// Ends the attempts to heal keys that are under way; others begin when their time comes.
    pub(crate) fn stop_asking(&mut self, context: &Context<'_>) {
        for key in self.asking.values().cloned().collect::<Vec<_>>() {
            self.give_up(&key, context);
        }
    }

    /// The keys for which what others hold is being committed.
    pub(crate) fn replacing(&self) -> impl Iterator<Item = &RecordKey> {
        self.replacing.values()
    }

    /// The partitions that are in doubt, or have keys that are.
    pub(crate) fn partitions(&self, of: PartitionCount) -> BTreeSet<Partition> {
        self.partitions_of_keys(of).into_iter().chain(self.partitions.keys().copied()).collect()
    }

    pub(crate) fn partitions_of_keys(&self, of: PartitionCount) -> BTreeSet<Partition> {
        self.keys.keys().map(|key| key.partition(of)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.partitions.keys().next().is_none()
    }

    /// The link to a node is gone, or (`restarted`) it is known as a later generation: an attempt that hangs on what
    /// it says, or has said, begins anew.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool, context: &Context<'_>) {
        let hangs_on_it = |key: &&RecordKey| match self.keys.get(*key).map(|doubted| &doubted.stage) {
            Some(Stage::Asking(asking)) => match asking.replies.get(&node) {
                Some(Reply::Pending) => true,
                Some(Reply::Trusted) => restarted && !is_on(Mutant::HealsCountEarlierGenerations),
                Some(Reply::Failed) | None => false,
            },
            _ => false,
        };
        let lost: Vec<_> = self.asking.values().filter(hangs_on_it).cloned().collect();
        for key in lost {
            self.give_up(&key, context);
        }
    }
}

impl Asking {
    fn makes(&self, counts: impl Fn(Reply) -> bool, context: &Context<'_>) -> bool {
        let counts = |node: &NodeId| self.replies.get(node).is_some_and(|reply| counts(*reply));
        self.sets.makes_whole(context.me, counts, |node| self.newcomers.contains(node))
    }
}
