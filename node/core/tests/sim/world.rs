//! The world around the nodes: virtual time, and the queue of what is going to happen.
//!
//! Everything happens in one thread in the order of the queue, and all chance comes from the seed: a seed is a run.
//! Here nodes are stepped and their effects performed; what may go wrong is decided in the modules beside.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;

use keystore_core::causal::{Dot, OperationId};
use keystore_core::effect::{
    Answer, ClientRequest, Damaged, Deadline, Effect, Event, FailureReason, LinkId, RequestId,
};
use keystore_core::layout::{Layout, Term};
use keystore_core::message::{Header, Message};
use keystore_core::node::{Node, NodeState};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Consistency;
use keystore_core::stamp::Stamp;

use crate::aim::{Blow, Moment};
use crate::coverage::{Coverage, Path};
use crate::disk::Ending;
use crate::faults::Mend;
use crate::founding::first_layout;
use crate::hints::Owed;
use crate::machine::{Machine, Standing};
use crate::network::{Network, Parcel};
use crate::plan::{Delivery, Plan, TIMEOUT_MS};
use crate::recoveries::Recovery;
use crate::request::{Asked, Request, Told, told};
use crate::rng::Rng;
use crate::stamps::accepted_by;
use crate::trace::{Brief, Trace};
use crate::violation::{Checker, Violation};
use crate::workload::{self, Client, Wish};

/// Moments are told apart more finely than by milliseconds where one follows from another.
pub(crate) const TICKS_PER_MS: u64 = 4_096;

/// What nodes ask for at one moment comes to an end.
const EVENTS_PER_MS_MAX: u64 = 20_000;

/// Something that is going to happen.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    Dial,
    /// Something arrives at one side of a link; `None`: the next of its stream.
    Parcel {
        link: LinkId,
        side: usize,
        parcel: Option<Box<Parcel>>,
    },
    GiveUp {
        link: LinkId,
        side: usize,
    },
    Start {
        machine: usize,
    },
    Resume {
        machine: usize,
        life: u64,
    },
    WriteGroup {
        machine: usize,
        life: u64,
    },
    EndGroup {
        machine: usize,
        life: u64,
        is_synced: bool,
    },
    PeriodicSync {
        machine: usize,
        life: u64,
    },
    SaveDone {
        machine: usize,
        life: u64,
    },
    Tick {
        machine: usize,
        life: u64,
    },
    Init {
        machine: usize,
        is_rival: bool,
    },
    Fault,
    /// A fault that has waited for its moment.
    Blow {
        machine: usize,
        life: u64,
        key: RecordKey,
        blow: Blow,
    },
    /// A fault ends.
    Mend(Mend),
    Client {
        client: usize,
    },
    /// A process that stands still answers nobody; an answer that comes later than this is not heard.
    ClientGivesUp {
        index: usize,
        deadline_ms: u64,
    },
    AskAgain {
        index: usize,
    },
    /// Whoever decides who is to be a member looks after the cluster.
    Steward,
    /// A machine that has departed starts as a new node.
    Rejoin {
        machine: usize,
    },
    /// More is lost than the store can bear.
    GreatLoss,
    /// The person looks after the cluster who can have it go on without what is lost.
    Person,
    /// A machine is given the layout of a recovery.
    HandOver {
        machine: usize,
        layout: Box<Layout>,
    },
    /// A machine comes back that was called lost.
    Return {
        machine: usize,
    },
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now_ms: u64,
    pub(crate) plan: Plan,
    /// As in the plan, until everything is healed.
    pub(crate) delivery: Delivery,
    pub(crate) requests: Vec<Request>,
    pub(crate) keys: Vec<RecordKey>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    /// The members, and then processes of cloned disks.
    pub(crate) machines: Vec<Machine>,
    pub(crate) network: Network,
    pub(crate) clients: Vec<Client>,
    /// The newest that is decided, as far as the world has seen.
    pub(crate) layout: Layout,
    /// By incarnation and epoch, every one that a node has taken up.
    pub(crate) layouts: BTreeMap<Term, Layout>,
    /// Who is to hold the data, if it moves.
    pub(crate) target: BTreeSet<usize>,
    /// How many replicas there are to be, if it moves.
    pub(crate) factor: usize,
    /// The phase in which a machine with data has died for good last, if data moved in it: the layouts of that.
    pub(crate) died_in: Option<Term>,
    /// What was promised when the move under way began.
    pub(crate) floors_then: BTreeMap<RecordKey, Stamp>,
    /// The proposals under way.
    pub(crate) proposals: BTreeMap<RequestId, Layout>,
    /// All that were ever proposed.
    pub(crate) proposed: BTreeMap<Term, Vec<Layout>>,
    pub(crate) recovery: Recovery,
    /// Members that have lost what they acknowledged, and count for nothing any more.
    pub(crate) hurt: BTreeSet<usize>,
    /// What a fault waits for.
    pub(crate) aim: Option<Moment>,
    /// What replicas have to get without being read.
    pub(crate) owed: Vec<Owed>,
    /// Which operation has which dot, synced on some disk.
    pub(crate) dots: BTreeMap<RecordKey, BTreeMap<Dot, OperationId>>,
    /// The dots that were given, synced or not.
    pub(crate) minted: BTreeMap<RecordKey, BTreeSet<Dot>>,
    pub(crate) is_healed: bool,
    /// How far wall clocks have been off at most, back and forth.
    pub(crate) clock_range: (i64, i64),
    /// Of each key, what was promised: no answer to a later request may be below.
    pub(crate) floors: BTreeMap<RecordKey, Stamp>,
    /// What may have left a key without a value: stamps of deletes, and of values with when they expire.
    pub(crate) marks: BTreeMap<RecordKey, BTreeMap<Stamp, Option<u64>>>,
    queue: BTreeMap<(u64, u64), Pending>,
    scheduled: u64,
    last_request: u64,
    last_tick: u64,
    /// How much has happened in this millisecond.
    happened: u64,
}

impl World {
    pub(crate) fn new(mut rng: Rng, plan: Plan, is_traced: bool) -> Self {
        let machines: Vec<_> =
            (0..plan.machines()).map(|n| Machine::new(n, rng.between(0, plan.skew_ms_max) as i64)).collect();
        let skew_ms_max = plan.skew_ms_max as i64;
        let factor = plan.replication_factor;
        let layout = first_layout(&machines[..plan.nodes], &plan);
        let keys = workload::keys(&plan.keys, layout.partitions);
        let mut world = Self {
            rng,
            now_ms: 0,
            delivery: plan.delivery,
            plan,
            requests: Vec::new(),
            keys,
            coverage: Coverage::default(),
            trace: Trace::new(is_traced),
            violation: None,
            machines,
            network: Network::default(),
            clients: Vec::new(),
            layouts: BTreeMap::from([(layout.term(), layout.clone())]),
            layout,
            target: BTreeSet::new(),
            factor,
            died_in: None,
            proposals: BTreeMap::new(),
            proposed: BTreeMap::new(),
            recovery: Recovery::default(),
            floors_then: BTreeMap::new(),
            hurt: BTreeSet::new(),
            aim: None,
            owed: Vec::new(),
            dots: BTreeMap::new(),
            minted: BTreeMap::new(),
            is_healed: false,
            clock_range: (0, skew_ms_max),
            floors: BTreeMap::new(),
            marks: BTreeMap::new(),
            queue: BTreeMap::new(),
            scheduled: 0,
            last_request: 0,
            last_tick: 0,
            happened: 0,
        };
        for n in 0..world.plan.machines() {
            world.machines[n].disk.lies = world.plan.disks_lie;
            world.start(n);
        }
        world.after(0, Pending::Dial);
        world
    }

    pub(crate) fn next_request(&mut self) -> RequestId {
        self.last_request += 1;
        RequestId(self.last_request)
    }

    /// True if every member that is not gone serves under the newest layout, and is linked to all others.
    pub(crate) fn all_serve(&self) -> bool {
        let alive: Vec<_> = self.members().into_iter().map(|n| &self.machines[n]).collect();
        let serves = |machine: &&Machine| {
            let status = machine.node.as_ref().map(|node| node.status(machine.now(self.now_ms)));
            status.is_some_and(|status| {
                status.state == NodeState::Serving
                    && status.layout.map(Layout::term) == Some(self.layout.term())
                    && status.connected.len() + 1 >= alive.len()
            })
        };
        alive.iter().all(serves)
    }

    /// Adds what the processes that run have counted.
    pub(crate) fn count_all(&mut self) {
        for machine in &self.machines {
            if let Some(node) = &machine.node {
                self.coverage.add_counters(&node.status(machine.now(self.now_ms)).counters);
            }
        }
    }

    /// Lets time pass, or less of it if a promise breaks.
    pub(crate) fn run_for(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.violation.is_none()
            && let Some(entry) = self.queue.first_entry()
        {
            let (at, _) = *entry.key();
            if at > until {
                break;
            }
            let pending = entry.remove();
            self.happened = if at > self.now_ms { 0 } else { self.happened + 1 };
            self.now_ms = at;
            if self.happened > EVENTS_PER_MS_MAX {
                let what = "so much happens at once that it may never end".to_owned();
                self.violate(Violation::of_the_world(Checker::TimeGoesOn, what));
            }
            self.happen(pending);
        }
        self.now_ms = until;
    }

    pub(crate) fn after(&mut self, ms: u64, pending: Pending) {
        self.scheduled += 1;
        self.queue.insert((self.now_ms + ms, self.scheduled), pending);
    }

    pub(crate) fn note(&mut self, what: impl Display) {
        self.trace.line(self.now_ms, what);
    }

    /// The first broken promise ends the run.
    pub(crate) fn violate(&mut self, violation: Violation) {
        self.note(format_args!("{violation:?}"));
        self.violation.get_or_insert(violation);
    }

    fn happen(&mut self, pending: Pending) {
        if let Some((machine, life)) = self.concerns(&pending) {
            if life.is_some_and(|life| self.machines[machine].life != life) {
                return;
            }
            if self.machines[machine].standing == Standing::Paused {
                return self.machines[machine].backlog.push_back(pending);
            }
        }
        match pending {
            Pending::Dial => self.dial(),
            Pending::Parcel { link, side, parcel } => self.arrive(link, side, parcel),
            Pending::GiveUp { link, side } => self.give_up(link, side),
            Pending::Start { machine } => self.start(machine),
            Pending::Resume { machine, life } if self.machines[machine].life == life => self.resume(machine),
            Pending::Resume { .. } => {}
            Pending::WriteGroup { machine, life } => self.write_group(machine, life),
            Pending::EndGroup { machine, is_synced, .. } => self.end_group(machine, is_synced),
            Pending::PeriodicSync { machine, .. } => self.machines[machine].disk.sync(),
            Pending::SaveDone { machine, .. } => self.end_save(machine),
            Pending::Tick { machine, .. } => {
                self.machines[machine].tick_at = None;
                self.step(machine, Event::Tick);
            }
            Pending::Init { machine, is_rival } => self.give_layout(machine, is_rival),
            Pending::Fault => self.strike(),
            Pending::Blow { machine, key, blow, .. } => self.strike_blow(machine, &key, blow),
            Pending::Mend(mend) => self.mend(mend),
            Pending::Client { client } => self.client_acts(client),
            Pending::ClientGivesUp { index, deadline_ms } => {
                if self.requests[index].deadline_ms == deadline_ms {
                    self.tell(index, Told::Unknown);
                }
            }
            Pending::AskAgain { index } => self.ask_again(index),
            Pending::Steward => self.steward_acts(),
            Pending::Rejoin { machine } => self.rejoin(machine),
            Pending::GreatLoss => self.strike_great_loss(),
            Pending::Person => self.person_acts(),
            Pending::HandOver { machine, layout } => self.hand_over(machine, layout),
            Pending::Return { machine } => self.come_back(machine),
        }
    }

    /// The machine whose process has to be awake for this, and the life of it that this was meant for.
    fn concerns(&self, pending: &Pending) -> Option<(usize, Option<u64>)> {
        match pending {
            Pending::Parcel { link, side, .. } | Pending::GiveUp { link, side } => {
                self.network.machine(*link, *side).map(|machine| (machine, None))
            }
            Pending::WriteGroup { machine, life }
            | Pending::EndGroup { machine, life, .. }
            | Pending::PeriodicSync { machine, life }
            | Pending::SaveDone { machine, life }
            | Pending::Blow { machine, life, .. }
            | Pending::Tick { machine, life } => Some((*machine, Some(*life))),
            Pending::Dial
            | Pending::Start { .. }
            | Pending::Resume { .. }
            | Pending::Init { .. }
            | Pending::Fault
            | Pending::Mend(_)
            | Pending::Client { .. }
            | Pending::ClientGivesUp { .. }
            | Pending::AskAgain { .. }
            | Pending::Steward
            | Pending::Rejoin { .. }
            | Pending::GreatLoss
            | Pending::Person
            | Pending::HandOver { .. }
            | Pending::Return { .. } => None,
        }
    }

    /// This very moment: later than every other that was asked for.
    pub(crate) fn tick(&mut self) -> u64 {
        self.last_tick = (self.last_tick + 1).max(self.now_ms * TICKS_PER_MS);
        self.last_tick
    }

    /// A client asks a machine; the answer, whatever it is, is noted under the index that is returned.
    pub(crate) fn ask(&mut self, machine: usize, wish: Wish) -> usize {
        let Wish { client, asked, level, durability, is_promised } = wish;
        let index = self.requests.len();
        let floor = asked.key().and_then(|key| self.floors.get(key)).copied();
        let asked_at = self.tick();
        self.requests.push(Request {
            client,
            machine,
            asked,
            level,
            durability,
            asked_at,
            deadline_ms: self.now_ms + TIMEOUT_MS,
            told: None,
            excused: false,
            is_repeated: false,
            expires_ms: None,
            is_promised,
            lost: BTreeSet::new(),
            floor,
        });
        self.send_request(machine, index);
        index
    }

    pub(crate) fn send_request(&mut self, machine: usize, index: usize) {
        let now_ms = self.now_ms;
        self.requests[index].machine = machine;
        let target = &mut self.machines[machine];
        if target.standing != Standing::Running {
            return self.tell(index, Told::Failed(FailureReason::Draining));
        }
        self.last_request += 1;
        let id = RequestId(self.last_request);
        target.requests.insert(id, index);
        let now = target.now(now_ms);
        let request = &mut self.requests[index];
        if let Asked::Put { ttl_ms: Some(ttl_ms), .. } = request.asked {
            let expires_ms = now.wall_ms + ttl_ms;
            let (first, last) = request.expires_ms.unwrap_or((expires_ms, expires_ms));
            request.expires_ms = Some((first.min(expires_ms), last.max(expires_ms)));
        }
        let event = Event::Client(ClientRequest {
            id,
            operation: request.asked.operation(),
            consistency: Some(request.level),
            durability: Some(request.durability),
            deadline: Deadline::after(now, TIMEOUT_MS),
        });
        self.step(machine, event);
    }

    pub(crate) fn tell(&mut self, index: usize, told: Told) {
        if self.requests[index].told.is_some() {
            return;
        }
        self.count_told(&told);
        let Some(told) = self.hear(index, told) else { return };
        let at = self.tick();
        self.requests[index].told = Some((at, told));
        self.raise_floor(self.requests[index].machine, index);
        self.client_is_told(index);
    }

    /// Feeds a node one event, and those that follow from it at once, and performs the effects, as far as it lives.
    pub(crate) fn step(&mut self, n: usize, event: Event) {
        let life = self.machines[n].life;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.machines[n].now(self.now_ms);
            let stray = self.stray_link(n, &event);
            self.note_arrival(n, &event);
            self.machines[n].begins = match &event {
                Event::Client(request) => Some(request.id),
                _ => None,
            };
            let Some(node) = &mut self.machines[n].node else { return };
            let mut effects = Vec::new();
            self.trace.line(self.now_ms, format_args!("machine {n}: {}", Brief(&event)));
            node.step(now, event, &mut effects);
            if let Some(link) = stray {
                self.check_stray(n, link, &effects);
            }
            let accepted = effects.iter().filter_map(accepted_by).max();
            for effect in effects {
                if let Some(left) = &mut self.machines[n].crash_after {
                    match left.checked_sub(1) {
                        Some(fewer) => *left = fewer,
                        None => {
                            self.coverage.count(Path::CrashedBetweenEffects);
                            return self.crash(n, Ending::Killed);
                        }
                    }
                }
                events.extend(self.perform(n, life, effect));
            }
            // Within one step nobody sees which came first, a stamp that is issued or a record that is accepted.
            self.note_accepted(n, accepted);
        }
        if self.plan.has_small_bounds() {
            self.check_bounds(n);
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
    fn perform(&mut self, n: usize, life: u64, effect: Effect) -> Vec<Event> {
        self.check_effect(n, &effect);
        match effect {
            Effect::Answer { request, answer } => self.answer(n, request, answer),
            Effect::Send { link, header, message } => self.send_counted(n, link, header, message),
            Effect::AcceptLink { link, hello } => return self.accept_link(n, link, hello),
            Effect::RefuseLink { link, refusal } => {
                return self.close(n, link, Parcel::Refusal(refusal)).into_iter().collect();
            }
            Effect::CloseLink { link } => {
                self.coverage.count(Path::LinkReplaced);
                return self.close(n, link, Parcel::End).into_iter().collect();
            }
            Effect::Load { load, key } => {
                let record = self.machines[n].disk.load(&key);
                match &record {
                    Ok(None) => {}
                    Ok(Some(_)) => self.moment(Moment::Loaded, n, &key),
                    Err(Damaged) => drop(self.machines[n].damaged.insert(key)),
                }
                return vec![Event::Loaded { load, record }];
            }
            Effect::Scan { load, range } => {
                let page = self.read_page(n, &range);
                return vec![Event::Scanned { load, page }];
            }
            Effect::Commit(commit) => {
                if self.machines[n].disk.append(commit) {
                    self.after(0, Pending::WriteGroup { machine: n, life });
                }
            }
            Effect::Save { save, state } => {
                self.machines[n].disk.begin_save(save, state);
                let delay = self.disk_delay(n);
                self.after(delay, Pending::SaveDone { machine: n, life });
            }
            Effect::Alarm(alarm) => self.check_alarm(n, alarm),
        }
        Vec::new()
    }

    fn answer(&mut self, n: usize, request: RequestId, answer: Answer) {
        if let Some(proposed) = self.proposals.remove(&request) {
            return self.note_proposal(n, &proposed, &answer);
        }
        if self.recovery.requests.remove(&request) {
            return self.note_handed_over(n, &answer);
        }
        if let Some(index) = self.machines[n].requests.remove(&request) {
            let key = self.requests[index].asked.key();
            let line = format_args!("machine {n}: answers {} of {key:?}: {answer:?}", request.0);
            self.trace.line(self.now_ms, line);
            let is_alone = self.is_past(n)
                || self.machines[n].is_stale && self.requests[index].level == Consistency::One;
            if !is_alone {
                self.check_answer(n, index, &answer);
            }
            match told(answer) {
                // A process of an old image of a disk may believe that it is a replica until somebody refuses it,
                // and may use stamps a second time: what it alone has said was not promised. Nor is what those say who
                // were called lost and live on.
                Some(_) if is_alone => self.tell(index, Told::Unknown),
                Some(told) => self.tell(index, told),
                None => {}
            }
        }
    }

    fn send_counted(&mut self, n: usize, link: LinkId, header: Header, message: Message) {
        self.check_message(n, (link, &header), &message);
        self.send(n, link, header, message);
    }
}
