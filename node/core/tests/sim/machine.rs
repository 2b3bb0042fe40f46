//! A machine: its disk, its clock, and the process that runs on it now and then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keystore_core::effect::{Event, Now, RequestId};
use keystore_core::id::{Actor, Generation, NodeId, Nonce};
use keystore_core::layout::Term;
use keystore_core::message::{Call, Message};
use keystore_core::node::{Node, Start};
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::record::Record;
use keystore_core::stamp::{CEILING_STEP_MS, Stamp};

use crate::coverage::Path;
use crate::disk::{Disk, Ending};
use crate::invariants::covers;
use crate::plan::TIMEOUT_MS;
use crate::request::Told;
use crate::transfers::TakingOver;
use crate::world::{Pending, World};

/// What every wall clock shows when the world begins, unless it is skewed.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;

/// How many old images of a disk are kept.
const IMAGES_MAX: usize = 3;

/// Why there is no process, or why it does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Running,
    /// Stopped by a signal, or by a machine that does not schedule it; everything for it waits.
    Paused,
    Down,
    /// It was called lost, with all that it has, and may come back.
    Away,
    /// It never comes back.
    Gone,
}

pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) actor: Actor,
    pub(crate) node: Option<Node>,
    pub(crate) disk: Disk,
    /// It runs from an old image of a disk. If such a process could start again and again before anybody refuses
    /// it, its generation would in the end be the highest: here it has one life.
    pub(crate) is_stale: bool,
    /// Of its disk, taken right before its last starts, the latest one first.
    pub(crate) images: VecDeque<Disk>,
    pub(crate) standing: Standing,
    /// How many bytes of hints the log had at the start: what it had lost that they were dropped is dropped again.
    pub(crate) hint_bytes_found: usize,
    /// How far its wall clock is off.
    pub(crate) clock_ms: i64,
    /// Counts the starts: what was scheduled for an earlier life is void.
    pub(crate) life: u64,
    pub(crate) tick_at: Option<u64>,
    pub(crate) requests: BTreeMap<RequestId, usize>,
    /// The stamps that its process has issued, and the last one of all its processes.
    pub(crate) issued: BTreeMap<Call, Stamp>,
    pub(crate) last_issued: Option<Stamp>,
    /// The request that its process is being handed, and those behind the operations that it has begun.
    pub(crate) begins: Option<RequestId>,
    pub(crate) operations: BTreeMap<u64, RequestId>,
    /// Which partition its process has asked others about.
    pub(crate) sent: BTreeMap<(NodeId, Call), Partition>,
    /// Of each operation of its own that is to heal a key, who has said what it holds, and as which generation.
    pub(crate) told_of: BTreeMap<u64, (RecordKey, BTreeMap<NodeId, Generation>)>,
    /// Keys that were found damaged.
    pub(crate) doubted: BTreeMap<RecordKey, Doubted>,
    /// The highest generation of each peer that anybody has told its process of.
    pub(crate) heard: BTreeMap<NodeId, Generation>,
    /// Keys of which its process has seen that they are damaged.
    pub(crate) damaged: BTreeSet<RecordKey>,
    /// Keys that its process has called damaged, and not healed since.
    pub(crate) in_doubt: BTreeSet<RecordKey>,
    /// Partitions that it has called doubtful as a whole, and not healed since.
    pub(crate) partitions_in_doubt: BTreeSet<Partition>,
    /// Partitions that could not be read when it last tried.
    pub(crate) unread: BTreeSet<Partition>,
    pub(crate) taking_over: TakingOver,
    pub(crate) started: Started,
    /// The highest stamp among the records that its process has accepted.
    pub(crate) accepted: Option<Stamp>,
    /// What it held of a key when it took a hint of it.
    pub(crate) hinted: BTreeMap<(NodeId, RecordKey), Record>,
    /// What its process was asked by others and may answer, and whether that came too late.
    pub(crate) asked: BTreeMap<(NodeId, Call), (Message, bool)>,
    /// The layout under which it was.
    pub(crate) asked_under: BTreeMap<(NodeId, Call), Term>,
    /// The process ends after this many more effects.
    pub(crate) crash_after: Option<u64>,
    /// What came while it was paused.
    pub(crate) backlog: VecDeque<Pending>,
    /// How many of its next syncs fail, each of which ends the process.
    pub(crate) sync_fails: bool,
    /// Its syncs take this much longer.
    pub(crate) stall_ms: u64,
}

/// What a process found when it started.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Started {
    /// No stamp that was issued before has as many milliseconds.
    pub(crate) ceiling_ms: u64,
    /// When the clock will have come up to that, if nobody sets it, or has had the time to.
    pub(crate) stamps_from_ms: u64,
}

/// A key that was found damaged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doubted {
    /// The generation in which it was.
    pub(crate) in_generation: Generation,
    /// What had been promised by then.
    pub(crate) floor: Option<Stamp>,
    pub(crate) is_healed: bool,
}

impl Machine {
    pub(crate) fn new(n: usize, clock_ms: i64) -> Self {
        Self {
            id: NodeId([n as u8 + 1; 16]),
            actor: Actor(n as u64 + 1),
            node: None,
            hint_bytes_found: 0,
            disk: Disk::default(),
            is_stale: false,
            images: VecDeque::new(),
            standing: Standing::Down,
            clock_ms,
            life: 0,
            tick_at: None,
            requests: BTreeMap::new(),
            issued: BTreeMap::new(),
            last_issued: None,
            asked: BTreeMap::new(),
            asked_under: BTreeMap::new(),
            begins: None,
            operations: BTreeMap::new(),
            sent: BTreeMap::new(),
            told_of: BTreeMap::new(),
            doubted: BTreeMap::new(),
            heard: BTreeMap::new(),
            damaged: BTreeSet::new(),
            in_doubt: BTreeSet::new(),
            partitions_in_doubt: BTreeSet::new(),
            unread: BTreeSet::new(),
            taking_over: TakingOver::default(),
            started: Started::default(),
            accepted: None,
            hinted: BTreeMap::new(),
            crash_after: None,
            backlog: VecDeque::new(),
            sync_fails: false,
            stall_ms: 0,
        }
    }

    pub(crate) fn now(&self, now_ms: u64) -> Now {
        Now { mono_ms: now_ms, wall_ms: (EPOCH_MS + now_ms).saturating_add_signed(self.clock_ms) }
    }
}

impl World {
    pub(crate) fn start(&mut self, n: usize) {
        let nonce = Nonce(self.rng.next());
        let knows_highest = self.rng.chance(75);
        let now_ms = self.now_ms;
        let machine = &mut self.machines[n];
        if machine.standing != Standing::Down {
            return;
        }
        if machine.disk.state.is_set_aside {
            machine.standing = Standing::Gone;
            return;
        }
        if machine.disk.is_log_damaged {
            self.coverage.count(Path::LogDamaged);
            machine.standing = Standing::Gone;
            return self.note(format_args!("machine {n} refuses to start: its log is damaged"));
        }
        machine.images.push_front(machine.disk.clone());
        machine.images.truncate(IMAGES_MAX);
        machine.disk.recover(nonce);
        // What was only written may have been lost with the power, and is nothing to be handed over.
        let Machine { hinted, disk, .. } = machine;
        hinted.retain(|(_, key), record| disk.visible(key).is_some_and(|stored| covers(stored, record)));
        machine.life += 1;
        machine.standing = Standing::Running;
        let state = machine.disk.state.clone();
        let wait_ms = state.ceiling_ms.saturating_sub(machine.now(now_ms).wall_ms).min(CEILING_STEP_MS);
        machine.started = Started { ceiling_ms: state.ceiling_ms, stamps_from_ms: now_ms + wait_ms };
        let start = Start {
            node: machine.id,
            actor: machine.actor,
            generation: state.generation,
            lineage: state.lineage,
            stamp_ceiling_ms: state.ceiling_ms,
            membership: state.membership,
            peers: state.peers,
            votes: state.votes,
            merges: state.merges,
            trusted_since: state.trusted_since,
            hints: machine.disk.hints().cloned().collect(),
            highest: knows_highest.then(|| machine.disk.highest()),
            settings: self.plan.settings.clone(),
        };
        let node = Node::new(start, machine.now(now_ms));
        machine.hint_bytes_found = node.status(machine.now(now_ms)).hints.bytes;
        machine.node = Some(node);
        self.is_whole_again(n);
        self.note_accepted_by(n);
        self.note(format_args!("start machine {n}, generation {}", state.generation));
        self.step(n, Event::Tick);
    }

    /// The process ends, and is started again after a while.
    pub(crate) fn crash(&mut self, n: usize, ending: Ending) {
        if self.machines[n].is_stale {
            return self.end_for_good(n);
        }
        if !self.end_process(n, ending) {
            return;
        }
        let pause_ms_max = if self.rng.chance(50) { 100 } else { 3_000 };
        let pause = self.rng.between(10, pause_ms_max);
        self.after(pause, Pending::Start { machine: n });
    }

    /// The process ends for good, and nothing that it held comes back.
    pub(crate) fn end_for_good(&mut self, n: usize) {
        self.end_as(n, Standing::Gone);
    }

    /// The process ends, and is started neither soon nor by itself.
    pub(crate) fn end_as(&mut self, n: usize, standing: Standing) {
        // A process that sets its disk aside answers nobody while it does.
        for index in self.machines[n].requests.values() {
            self.requests[*index].excused = true;
        }
        self.end_process(n, Ending::PowerLost);
        self.machines[n].standing = standing;
        self.note(format_args!("machine {n} is {standing:?}"));
    }

    fn end_process(&mut self, n: usize, ending: Ending) -> bool {
        let now_ms = self.now_ms;
        let machine = &mut self.machines[n];
        let Some(node) = machine.node.take() else { return false };
        self.coverage.add_counters(&node.status(machine.now(now_ms)).counters);
        machine.asked.clear();
        machine.asked_under.clear();
        machine.heard.clear();
        machine.damaged.clear();
        machine.in_doubt.clear();
        machine.partitions_in_doubt.clear();
        machine.unread.clear();
        machine.taking_over.forget();
        machine.accepted = None;
        machine.sent.clear();
        machine.told_of.clear();
        machine.operations.clear();
        machine.issued.clear();
        machine.life += 1;
        machine.standing = Standing::Down;
        machine.tick_at = None;
        machine.crash_after = None;
        machine.sync_fails = false;
        machine.backlog.clear();
        let lost = machine.disk.crash(ending, &mut self.rng);
        let requests = std::mem::take(&mut machine.requests);
        if lost > 0 {
            self.coverage.count(Path::UnsyncedEntriesLost);
        }
        self.note(format_args!("machine {n} {ending:?}, {lost} written entries lost"));
        for index in requests.into_values() {
            self.tell(index, Told::Unknown);
        }
        self.end_links_of(n, ending);
        true
    }

    /// The process stands still: everything for it waits, and its links look dead to the others.
    pub(crate) fn pause(&mut self, n: usize, for_ms: u64) {
        if self.machines[n].standing != Standing::Running {
            return;
        }
        self.machines[n].standing = Standing::Paused;
        self.coverage.count(Path::Paused);
        if for_ms > TIMEOUT_MS {
            self.coverage.count(Path::PausedBeyondDeadlines);
        }
        self.note(format_args!("machine {n} is paused for {for_ms} ms"));
        let waiting: Vec<_> = self.machines[n].requests.values().copied().collect();
        for index in waiting {
            self.requests[index].excused = true;
        }
        let life = self.machines[n].life;
        self.after(for_ms, Pending::Resume { machine: n, life });
        self.doubt_links();
    }

    pub(crate) fn resume(&mut self, n: usize) {
        if self.machines[n].standing != Standing::Paused {
            return;
        }
        self.machines[n].standing = Standing::Running;
        self.note(format_args!("machine {n} goes on"));
        for pending in std::mem::take(&mut self.machines[n].backlog) {
            self.after(0, pending);
        }
    }

    pub(crate) fn is_running(&self, n: usize) -> bool {
        self.machines[n].standing == Standing::Running
    }
}
