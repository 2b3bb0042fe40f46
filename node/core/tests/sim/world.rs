//! The world around the nodes: virtual time, a network that delays, reorders and drops, disks, clients, crashes.
//!
//! Everything happens in one thread in the order of a queue, and all chance comes from the seed: a seed is a run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keystore_core::effect::{
    Answer, ClientRequest, Deadline, Effect, Event, LinkId, Now, Operation as CoreOperation, RequestId,
};
use keystore_core::id::{Actor, ClusterId, Incarnation, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::message::{Call, Header, Hello, Message, Origin, Write, WriteOutcome};
use keystore_core::node::{Node, NodeState, Settings, Start};
use keystore_core::partition::{PartitionCount, RecordKey};
use keystore_core::quorum::Durability;
use keystore_core::stamp::Stamp;

use crate::disk::Disk;
use crate::history::{Asked, Operation, Told, told};
use crate::rng::Rng;

const EPOCH_MS: u64 = 1_700_000_000_000;
pub(crate) const TIMEOUT_MS: u64 = 2_000;

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) drop_percent: u64,
    pub(crate) delay_ms_max: u64,
    pub(crate) clock_skew_ms: u64,
    /// How many commits in a hundred wait for a disk that stalls.
    pub(crate) slow_disk_percent: u64,
}

/// Something that is going to happen.
enum Pending {
    Hello { link: LinkId, to: usize, hello: Hello },
    Frame { link: LinkId, to: usize, header: Header, message: Message },
    Closed { link: LinkId, at: usize },
    DiskSync { machine: usize, life: u64 },
    SaveDone { machine: usize, life: u64 },
    Tick { machine: usize, life: u64 },
    Dial,
    Start { machine: usize },
}

struct Machine {
    id: NodeId,
    node: Option<Node>,
    disk: Disk,
    skew_ms: u64,
    /// Counts the starts: what was scheduled for an earlier life is void.
    life: u64,
    tick_at: Option<u64>,
    requests: BTreeMap<RequestId, usize>,
    /// The last stamp seen to be issued here, by which call of which life.
    issued: Option<(Stamp, (u64, Call))>,
    /// The process ends after this many more effects.
    crash_after: Option<u64>,
}

/// One connection; side 0 dialled.
struct Link {
    machines: [usize; 2],
    accepted: [bool; 2],
    /// Frames that arrived before the side had accepted the link.
    held: [Vec<(Header, Message)>; 2],
}

/// How often rare things happened: a run in which they never do proves little.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Coverage {
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) failed: u64,
    pub(crate) crashes: u64,
    pub(crate) drops: u64,
    pub(crate) repairs: u64,
    pub(crate) superseded: u64,
    pub(crate) stamped_anew: u64,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now_ms: u64,
    pub(crate) faults: Faults,
    pub(crate) history: Vec<Operation>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Vec<String>,
    machines: Vec<Machine>,
    links: BTreeMap<LinkId, Link>,
    cut: BTreeSet<usize>,
    queue: BTreeMap<(u64, u64), Pending>,
    scheduled: u64,
    last_link: u64,
    last_request: u64,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize, faults: Faults) -> Self {
        let mut rng = Rng::new(seed);
        let machine = |n: usize, skew_ms| Machine {
            id: NodeId([n as u8 + 1; 16]),
            node: None,
            disk: Disk::default(),
            skew_ms,
            life: 0,
            tick_at: None,
            requests: BTreeMap::new(),
            issued: None,
            crash_after: None,
        };
        let machines = (0..nodes).map(|n| machine(n, rng.between(0, faults.clock_skew_ms))).collect();
        let mut world = Self {
            rng,
            now_ms: 0,
            faults,
            history: Vec::new(),
            coverage: Coverage::default(),
            trace: Vec::new(),
            machines,
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            queue: BTreeMap::new(),
            scheduled: 0,
            last_link: 0,
            last_request: 0,
        };
        for n in 0..nodes {
            world.start(n);
        }
        world.after(0, Pending::Dial);
        world
    }

    pub(crate) fn nodes(&self) -> usize {
        self.machines.len()
    }

    pub(crate) fn disks_lie(&mut self) {
        for machine in &mut self.machines {
            machine.disk.lies = true;
        }
    }

    /// Gives all members the first layout and waits until all serve.
    pub(crate) fn init(&mut self, replication_factor: usize) {
        let member = |(n, machine): (usize, &Machine)| Member {
            node: machine.id,
            actor: Actor(n as u64 + 1),
            name: format!("node-{n}"),
            zone: String::new(),
            weight: 1,
        };
        let layout = Layout::first(FirstLayout {
            cluster: ClusterId([7; 16]),
            incarnation: Incarnation { number: 1, id: 7 },
            partitions: PartitionCount::new(16).unwrap(),
            replication_factor,
            members: self.machines.iter().enumerate().map(member).collect(),
        });
        let layout = layout.unwrap();
        for n in 0..self.nodes() {
            self.last_request += 1;
            let request = RequestId(self.last_request);
            self.step(n, Event::Init { request, layout: layout.clone() });
        }
        let deadline = self.now_ms + 60_000;
        while !self.all_serve() {
            assert!(self.now_ms < deadline, "not all nodes serve after init\n{}", self.trace.join("\n"));
            self.run_for(50);
        }
    }

    pub(crate) fn all_serve(&self) -> bool {
        let serves = |machine: &Machine| {
            let status = machine.node.as_ref().map(|node| node.status(self.now(machine)));
            status.is_some_and(|status| {
                status.state == NodeState::Serving && status.connected.len() + 1 == self.nodes()
            })
        };
        self.machines.iter().all(serves)
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > until {
                break;
            }
            let pending = entry.remove();
            self.now_ms = self.now_ms.max(at);
            self.happen(pending);
        }
        self.now_ms = until;
    }

    /// A client asks a node; where none runs there, it is told at once that nothing was applied.
    pub(crate) fn ask(&mut self, machine: usize, key: RecordKey, asked: Asked) {
        let operation = match &asked {
            Asked::Get => CoreOperation::Get { key: key.clone() },
            Asked::Put(value) => CoreOperation::Put { key: key.clone(), value: value.clone().into() },
            Asked::Delete => CoreOperation::Delete { key: key.clone() },
        };
        let index = self.history.len();
        let deadline = self.now_ms + TIMEOUT_MS;
        self.history.push(Operation { key, asked, asked_at: self.now_ms, deadline, told: None });
        let Some(target) = self.machines.get_mut(machine) else {
            return;
        };
        if target.node.is_none() {
            return self.tell(index, Told::Failed);
        }
        self.last_request += 1;
        let id = RequestId(self.last_request);
        target.requests.insert(id, index);
        let now = self.now(&self.machines[machine]);
        let durability = Some(Durability::Synced);
        let deadline = Deadline::after(now, TIMEOUT_MS);
        self.step(
            machine,
            Event::Client(ClientRequest { id, operation, consistency: None, durability, deadline }),
        );
    }

    /// The process on a machine ends in the middle of what it does next, and comes back later.
    pub(crate) fn crash_soon(&mut self, machine: usize) {
        let effects = self.rng.between(0, 6);
        self.machines[machine].crash_after = Some(effects);
    }

    /// All processes end at this very moment.
    pub(crate) fn crash_all(&mut self) {
        for machine in 0..self.nodes() {
            self.crash(machine);
        }
    }

    /// Nothing reaches this machine or leaves it until it is healed; its links break.
    pub(crate) fn cut(&mut self, machine: usize) {
        self.trace(&format!("cut machine {machine}"));
        self.cut.insert(machine);
        self.close_links_of(machine);
    }

    pub(crate) fn heal(&mut self) {
        self.trace("heal");
        self.cut.clear();
        self.faults.drop_percent = 0;
        for machine in &mut self.machines {
            machine.crash_after = None;
        }
    }

    fn trace(&mut self, what: &str) {
        self.trace.push(format!("{:>6} {what}", self.now_ms));
    }

    fn now(&self, machine: &Machine) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: EPOCH_MS + self.now_ms + machine.skew_ms }
    }

    fn after(&mut self, ms: u64, pending: Pending) {
        self.scheduled += 1;
        self.queue.insert((self.now_ms + ms, self.scheduled), pending);
    }

    fn happen(&mut self, pending: Pending) {
        match pending {
            Pending::Dial => self.dial(),
            Pending::Start { machine } => self.start(machine),
            Pending::Hello { link, to, hello } => {
                if self.links.contains_key(&link) {
                    self.step(to, Event::LinkOffered { link, hello });
                }
            }
            Pending::Frame { link, to, header, message } => self.arrive(link, to, header, message),
            Pending::Closed { link, at } => self.step(at, Event::LinkClosed { link }),
            Pending::DiskSync { machine, life } => self.disk_sync(machine, life),
            Pending::SaveDone { machine, life } => {
                if self.machines[machine].life == life
                    && let Some(save) = self.machines[machine].disk.finish_save()
                {
                    self.step(machine, Event::Saved { save });
                }
            }
            Pending::Tick { machine, life } => {
                if self.machines[machine].life == life {
                    self.machines[machine].tick_at = None;
                    self.step(machine, Event::Tick);
                }
            }
        }
    }

    fn disk_sync(&mut self, machine: usize, life: u64) {
        if self.machines[machine].life != life {
            return;
        }
        if let Some(commit) = self.machines[machine].disk.sync_one() {
            self.step(machine, Event::Committed { commit: commit.id, outcome: Ok(Durability::Synced) });
        }
    }

    fn arrive(&mut self, link: LinkId, to: usize, header: Header, message: Message) {
        let Some(open) = self.links.get_mut(&link) else {
            return;
        };
        let side = usize::from(open.machines[1] == to);
        if open.accepted[side] {
            self.step(to, Event::Frame { link, header, messages: vec![message] });
        } else {
            open.held[side].push((header, message));
        }
    }

    /// Each pair without a link gets one, dialled by the lower UUID.
    fn dial(&mut self) {
        for dialler in 0..self.nodes() {
            for other in dialler + 1..self.nodes() {
                let is_linked = self.links.values().any(|link| link.machines == [dialler, other]);
                let is_cut = self.cut.contains(&dialler) || self.cut.contains(&other);
                if is_linked || is_cut || self.machines[other].node.is_none() {
                    continue;
                }
                let to = self.machines[other].id;
                let hello = self.machines[dialler].node.as_ref().and_then(|node| node.hello(to));
                let Some(hello) = hello else { continue };
                self.last_link += 1;
                let link = LinkId(self.last_link);
                let held = [Vec::new(), Vec::new()];
                self.links.insert(link, Link { machines: [dialler, other], accepted: [false, false], held });
                let delay = self.delay();
                self.after(delay, Pending::Hello { link, to: other, hello });
            }
        }
        self.after(40, Pending::Dial);
    }

    fn delay(&mut self) -> u64 {
        self.rng.between(1, self.faults.delay_ms_max.max(1))
    }

    fn start(&mut self, n: usize) {
        let nonce = Nonce(self.rng.next());
        // The wall clock may have been set, forward or back, while the process was away.
        self.machines[n].skew_ms = self.rng.between(0, self.faults.clock_skew_ms);
        let now = self.now(&self.machines[n]);
        let machine = &mut self.machines[n];
        machine.disk.recover();
        machine.life += 1;
        let start = Start {
            node: machine.id,
            actor: Actor(n as u64 + 1),
            generation: machine.disk.generation,
            nonce,
            stamp_ceiling_ms: machine.disk.ceiling_ms,
            membership: machine.disk.membership.clone(),
            peers: machine.disk.peers.clone(),
            settings: Settings::default(),
        };
        machine.node = Some(Node::new(start, now));
        let generation = machine.disk.generation;
        self.trace(&format!("start machine {n}, generation {generation}"));
        self.step(n, Event::Tick);
    }

    fn crash(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        if machine.node.take().is_none() {
            return;
        }
        machine.life += 1;
        machine.tick_at = None;
        machine.crash_after = None;
        machine.disk.crash(&mut self.rng);
        let requests = std::mem::take(&mut machine.requests);
        self.coverage.crashes += 1;
        self.trace(&format!("crash machine {n}"));
        for index in requests.into_values() {
            self.tell(index, Told::Unknown);
        }
        self.close_links_of(n);
        let pause_ms_max = if self.rng.chance(50) { 100 } else { 3_000 };
        let pause = self.rng.between(10, pause_ms_max);
        self.after(pause, Pending::Start { machine: n });
    }

    fn close_links_of(&mut self, n: usize) {
        let links: Vec<_> =
            self.links.iter().filter(|(_, l)| l.machines.contains(&n)).map(|(id, _)| *id).collect();
        for link in links {
            self.close(link, n);
        }
    }

    /// One side closes; the other hears of it.
    fn close(&mut self, link: LinkId, by: usize) {
        let Some(closed) = self.links.remove(&link) else {
            return;
        };
        for machine in closed.machines {
            let delay = if machine == by { 0 } else { self.delay() };
            self.after(delay, Pending::Closed { link, at: machine });
        }
    }

    fn tell(&mut self, index: usize, told: Told) {
        match told {
            Told::Written(_) => self.coverage.acknowledged += 1,
            Told::Unknown => self.coverage.unknown += 1,
            Told::Failed => self.coverage.failed += 1,
            Told::Read(_) => {}
        }
        self.history[index].told = Some((self.now_ms, told));
    }

    /// Feeds a node one event, and those that follow from it at once, and performs the effects, as far as it lives.
    fn step(&mut self, n: usize, event: Event) {
        let life = self.machines[n].life;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now(&self.machines[n]);
            let Some(node) = &mut self.machines[n].node else { return };
            let mut effects = Vec::new();
            self.trace.push(format!("{:>6} machine {n}: {event:?}", self.now_ms));
            node.step(now, event, &mut effects);
            for effect in effects {
                if let Some(left) = &mut self.machines[n].crash_after {
                    match left.checked_sub(1) {
                        Some(fewer) => *left = fewer,
                        None => return self.crash(n),
                    }
                }
                events.extend(self.perform(n, life, effect));
            }
        }
        self.schedule_tick(n);
    }

    fn schedule_tick(&mut self, n: usize) {
        let Some(wakeup) = self.machines[n].node.as_ref().and_then(Node::next_wakeup_ms) else {
            return;
        };
        if self.machines[n].tick_at.is_none_or(|at| wakeup < at) {
            self.machines[n].tick_at = Some(wakeup);
            let life = self.machines[n].life;
            self.after(wakeup.saturating_sub(self.now_ms), Pending::Tick { machine: n, life });
        }
    }

    /// Returns what follows from the effect at once.
    fn perform(&mut self, n: usize, life: u64, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Answer { request, answer } => self.answer(n, request, answer),
            Effect::Send { link, header, message } => self.send(n, link, header, message),
            Effect::AcceptLink { link, hello } => self.accept_link(n, link, hello),
            Effect::RefuseLink { link, .. } | Effect::CloseLink { link } => self.close(link, n),
            Effect::Load { load, key } => {
                let record = Ok(self.machines[n].disk.load(&key));
                return Some(Event::Loaded { load, record });
            }
            Effect::Commit(commit) => {
                self.machines[n].disk.append(commit);
                let is_stalled = self.rng.chance(self.faults.slow_disk_percent);
                let delay = if is_stalled { self.rng.between(1, 2_500) } else { self.rng.between(1, 10) };
                self.after(delay, Pending::DiskSync { machine: n, life });
            }
            Effect::Save { save, state } => {
                self.machines[n].disk.begin_save(save, state);
                let delay = self.rng.between(1, 10);
                self.after(delay, Pending::SaveDone { machine: n, life });
            }
            Effect::Alarm(alarm) => panic!("{alarm:?}\n{}", self.trace.join("\n")),
        }
        None
    }

    fn answer(&mut self, n: usize, request: RequestId, answer: Answer) {
        if let Some(index) = self.machines[n].requests.remove(&request) {
            self.trace.push(format!("{:>6} machine {n}: answers {request:?} {answer:?}", self.now_ms));
            self.tell(index, told(answer));
        }
    }

    fn accept_link(&mut self, n: usize, link: LinkId, hello: Hello) {
        let Some(open) = self.links.get_mut(&link) else {
            return;
        };
        let [dialler, other] = open.machines;
        let side = usize::from(other == n);
        open.accepted[side] = true;
        let held = std::mem::take(&mut open.held[side]);
        for (header, message) in held {
            self.after(0, Pending::Frame { link, to: n, header, message });
        }
        if side == 1 {
            let delay = self.delay();
            self.after(delay, Pending::Hello { link, to: dialler, hello });
        }
    }

    fn send(&mut self, n: usize, link: LinkId, header: Header, message: Message) {
        self.count(&message);
        self.check_issued(n, &message);
        let Some(open) = self.links.get(&link) else { return };
        let to = open.machines[usize::from(open.machines[0] == n)];
        if self.rng.chance(self.faults.drop_percent) {
            self.coverage.drops += 1;
            self.trace.push(format!("{:>6} dropped {n} -> {to}: {message:?}", self.now_ms));
            return;
        }
        let delay = self.delay();
        self.after(delay, Pending::Frame { link, to, header, message });
    }

    /// Rule 6: whatever happens to the clock, a node's stamps only grow, from one life to the next.
    fn check_issued(&mut self, n: usize, message: &Message) {
        let Message::Write(Write { call, record, origin: Origin::Client { .. }, .. }) = message else {
            return;
        };
        let life = self.machines[n].life;
        let now = (record.stamp, (life, *call));
        if let Some(last) = self.machines[n].issued
            && last != now
        {
            assert!(last.0 < now.0, "a stamp was not above the last of its node: {last:?}, then {now:?}");
        }
        self.machines[n].issued = Some(now);
    }

    fn count(&mut self, message: &Message) {
        match message {
            Message::Write(write) if write.origin == Origin::Repair => self.coverage.repairs += 1,
            Message::Write(write) if write.call.attempt > 1 => self.coverage.stamped_anew += 1,
            Message::WriteAnswer { outcome: WriteOutcome::Superseded(_), .. } => {
                self.coverage.superseded += 1;
            }
            _ => {}
        }
    }
}
