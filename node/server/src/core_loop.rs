//! The core thread: owns the state machine, feeds it everything that waits, performs what it wants.
//!
//! Work is done in batches because the inbox gives everything that waits at once: one wake-up, one frame for each
//! peer, one batch of commits and one hand-over of answers serve however many requests have gathered. Records are
//! loaded right here; whatever waits for a disk or a socket belongs to another thread.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::{Alarm, ClientRequest, Commit, Damaged, Effect, Event, NoPage, Now, RequestId};
use keystore_core::id::{Epoch, NodeId};
use keystore_core::message::{Page, ScanRange};
use keystore_core::node::{Node, NodeState};
use keystore_core::partition::Partition;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use crate::clock::Clock;
use crate::handle::{Input, Request, Reserved, Told};
use crate::inbox::Inbox;
use crate::outbox::{Outbox, Verdict};
use crate::storage::{EngineError, LoadError, RunningStorage, ScanError, Storage, StorageHandle};
use crate::view::View;

/// How many batches may wait for the tasks that deliver them; then the core waits too.
pub const OUTBOXES_MAX: usize = 1_024;
/// How old the published view may get while nothing happens.
const PUBLISH_EVERY_MS: u64 = 1_000;
/// While a state is about to pass by time alone, somebody is waiting for it.
const PUBLISH_SOON_MS: u64 = 20;

/// Why the core thread ended by itself.
#[derive(Debug, Error)]
pub enum CoreError {
    #[error("nobody takes what the core thread has to say")]
    NobodyListens,
    #[error("a record cannot be read: {0}")]
    Engine(#[from] EngineError),
    #[error(
        "member {0} has seen a later start of this data directory, or another process that uses a copy of it: the disk \
         was rolled back or cloned, and what this node has acknowledged since is lost here. The directory is set \
         aside, no node starts from it again; the others serve on without this one"
    )]
    SetAside(NodeId),
    #[error(
        "this node is no member any more since epoch {0}, or was given up as lost: what it holds is held by others. The \
         directory is set aside; the next start is that of a new node"
    )]
    Departed(Epoch),
}

pub struct CoreLoop {
    pub node: Node,
    pub engine: Arc<dyn Storage>,
    pub disk: RunningStorage,
    pub inbox: Arc<Inbox<Input>>,
    pub clock: Clock,
    pub outboxes: mpsc::Sender<Outbox>,
    pub view: watch::Sender<Arc<View>>,
    pub frame_bytes_max: usize,
}

impl CoreLoop {
    /// Runs until told to stop, which comes after the drain; returns the disk, which has to be shut down after.
    pub fn run(self) -> Result<RunningStorage, CoreError> {
        let now = self.clock.now();
        let mut turn = Turn {
            disk: self.disk.handle(),
            core: self,
            now,
            requests: HashMap::new(),
            unreadable: BTreeSet::new(),
            next_request: 0,
            events: VecDeque::new(),
            effects: Vec::new(),
            commits: Vec::new(),
            outbox: Outbox::default(),
            is_view_stale: true,
        };
        let mut batch = VecDeque::new();
        loop {
            turn.publish();
            turn.core.inbox.take(&mut batch, turn.patience());
            turn.now = turn.core.clock.now();
            let mut is_last = false;
            while let Some(input) = batch.pop_front() {
                if turn.take(input)? == Flow::Stop {
                    // Whoever has asked behind that is told that this node drains: its silence would mean that nobody
                    // knows what became of a write.
                    batch.append(&mut turn.core.inbox.close());
                    is_last = true;
                }
            }
            if is_last {
                turn.flush()?;
                return Ok(turn.core.disk);
            }
            if turn.core.node.next_wakeup_ms().is_some_and(|at| at <= turn.now.mono_ms) {
                turn.step(Event::Tick)?;
            }
            turn.flush()?;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    GoOn,
    Stop,
}

/// A request that core has and has not answered.
struct Waiting {
    answer: oneshot::Sender<Told>,
    /// What a client's request holds of what all of them share.
    reserved: Option<Reserved>,
}

/// One round after another: what has gathered for others since the last.
struct Turn {
    core: CoreLoop,
    disk: StorageHandle,
    now: Now,
    requests: HashMap<RequestId, Waiting>,
    next_request: u64,
    events: VecDeque<Event>,
    effects: Vec<Effect>,
    commits: Vec<Commit>,
    outbox: Outbox,
    is_view_stale: bool,
    /// Partitions whose engine was found damaged in a scan: said once.
    unreadable: BTreeSet<Partition>,
}

impl Turn {
    fn take(&mut self, input: Input) -> Result<Flow, CoreError> {
        match input {
            Input::Request { request, answer } => {
                let Request { operation, consistency, durability, deadline, reserved } = request;
                let id = self.await_answer(Waiting { answer, reserved: Some(reserved) });
                self.step(Event::Client(ClientRequest { id, operation, consistency, durability, deadline }))?;
            }
            Input::Init { layout, answer } => {
                self.is_view_stale = true;
                let request = self.await_answer(Waiting { answer, reserved: None });
                self.step(Event::Init { request, layout })?;
            }
            Input::Propose { expected, layout, answer } => {
                self.is_view_stale = true;
                let request = self.await_answer(Waiting { answer, reserved: None });
                self.step(Event::Propose { request, expected, layout })?;
            }
            Input::Recover { layout, answer } => {
                self.is_view_stale = true;
                let request = self.await_answer(Waiting { answer, reserved: None });
                self.step(Event::Recover { request, layout })?;
            }
            Input::HelloTo { peer, answer } => {
                // The dialler may be gone already.
                let _ = answer.send(self.core.node.hello(peer));
            }
            Input::Event(event) => {
                self.is_view_stale |= !matches!(event, Event::Frame { .. });
                self.step(event)?;
            }
            Input::Events(events) => {
                for event in events {
                    self.step(event)?;
                }
            }
            Input::Stop => return Ok(Flow::Stop),
        }
        Ok(Flow::GoOn)
    }

    fn await_answer(&mut self, waiting: Waiting) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.requests.insert(id, waiting);
        id
    }

    /// The event, and those that follow from its effects at once.
    fn step(&mut self, event: Event) -> Result<(), CoreError> {
        let mut effects = std::mem::take(&mut self.effects);
        let mut next = Some(event);
        while let Some(event) = next {
            self.core.node.step(self.now, event, &mut effects);
            for effect in effects.drain(..) {
                self.perform(effect)?;
            }
            next = self.events.pop_front();
        }
        self.effects = effects;
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), CoreError> {
        match effect {
            Effect::Answer { request, answer } => {
                if let Some(Waiting { answer: waiting, reserved }) = self.requests.remove(&request) {
                    self.outbox.answers.push((waiting, Told::new(answer, reserved)));
                }
            }
            Effect::Send { link, header, message } => {
                self.outbox.send(link, header, message, self.core.frame_bytes_max);
            }
            Effect::AcceptLink { link, hello } => self.outbox.verdicts.push((link, Verdict::Accepted(hello))),
            Effect::RefuseLink { link, refusal } => {
                self.outbox.verdicts.push((link, Verdict::Refused(refusal)));
            }
            Effect::CloseLink { link } => self.outbox.closings.push(link),
            Effect::Load { load, key } => {
                let record = match self.core.engine.load(&key) {
                    Ok(record) => Ok(record),
                    Err(LoadError::Damaged) => Err(Damaged),
                    Err(LoadError::Io(error)) => return Err(error.into()),
                };
                self.events.push_back(Event::Loaded { load, record });
            }
            Effect::Scan { load, range } => {
                let page = self.scan(&range)?;
                self.events.push_back(Event::Scanned { load, page });
            }
            Effect::Commit(commit) => self.commits.push(commit),
            Effect::Save { save, state } => self.disk.save(save, state),
            Effect::Alarm(alarm) => report(&alarm)?,
        }
        Ok(())
    }

    fn scan(&mut self, range: &ScanRange) -> Result<Result<Page, NoPage>, CoreError> {
        // A scan comes from a link or a client, and neither is served without a layout.
        let Some(layout) = self.core.node.layout() else { return Ok(Ok(Page::default())) };
        match self.core.engine.scan(layout.partitions.slots(range.partition), range) {
            Ok(page) => Ok(Ok(page)),
            Err(ScanError::Damaged(key)) => Ok(Err(NoPage::Damaged(key))),
            Err(ScanError::Unreadable(error)) => {
                if self.unreadable.insert(range.partition) {
                    error!(
                        partition = %range.partition,
                        %error,
                        "a stretch of the storage engine cannot be read"
                    );
                }
                Ok(Err(NoPage::Unreadable))
            }
            Err(ScanError::Io(error)) => Err(error.into()),
        }
    }

    /// Hands over what this round has gathered. Whoever hears that a layout is in force also sees it.
    fn flush(&mut self) -> Result<(), CoreError> {
        let shown = self.core.view.borrow().layout.as_ref().map(|layout| layout.epoch);
        if self.core.node.layout().map(|layout| layout.epoch) != shown {
            self.is_view_stale = true;
            self.publish();
        }
        self.disk.commit(&mut self.commits);
        match self.outbox.take() {
            Some(outbox) => self.core.outboxes.blocking_send(outbox).map_err(|_| CoreError::NobodyListens),
            None => Ok(()),
        }
    }

    /// How long nothing has to be done unless something comes in.
    fn patience(&self) -> Duration {
        let wakeup_ms = self.core.node.next_wakeup_ms().unwrap_or(u64::MAX);
        let until_ms = wakeup_ms.min(self.publish_at_ms());
        Duration::from_millis(until_ms.saturating_sub(self.core.clock.mono_ms()))
    }

    fn publish_at_ms(&self) -> u64 {
        let view = self.core.view.borrow();
        let is_passing = view.state == NodeState::Draining || view.state == NodeState::Serving && !view.ready;
        let every_ms = if is_passing { PUBLISH_SOON_MS } else { PUBLISH_EVERY_MS };
        view.published_ms + every_ms
    }

    fn publish(&mut self) {
        if !self.is_view_stale && self.now.mono_ms < self.publish_at_ms() {
            return;
        }
        self.is_view_stale = false;
        let status = self.core.node.status(self.now);
        let next = self.core.view.borrow().next(status, self.now.mono_ms);
        self.core.view.send_replace(Arc::new(next));
    }
}

fn report(alarm: &Alarm) -> Result<(), CoreError> {
    match alarm {
        Alarm::EqualStamps { key, stamp } => {
            error!(?key, %stamp, "two different records of one key bear one stamp");
        }
        Alarm::DamagedRecord { key } => error!(?key, "a stored record failed its checksum"),
        Alarm::Healed { key } => info!(?key, "a damaged record was healed from other replicas"),
        Alarm::DoubtedPartition { partition } => error!(
            %partition,
            "this node counts for nothing in a partition, which it merges anew: what it holds there cannot all be read"
        ),
        Alarm::HealedPartition { partition } => {
            info!(%partition, "a partition was healed from other replicas");
        }
        Alarm::StaleGeneration { peer } => return Err(CoreError::SetAside(*peer)),
        Alarm::Departed { epoch } => return Err(CoreError::Departed(*epoch)),
    }
    Ok(())
}
