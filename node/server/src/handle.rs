//! How every other task talks to the core thread.

use std::sync::Arc;

use keystore_core::effect::{Answer, Deadline, Event, Failure, FailureReason, LinkId, Operation};
use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::Layout;
use keystore_core::message::{Header, Hello, Message};
use keystore_core::quorum::{Consistency, Durability};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::clock::Clock;
use crate::inbox::{Inbox, NotTaken};
use crate::memory::Held;
use crate::view::View;

/// What the core thread takes from its inbox.
#[derive(Debug)]
pub enum Input {
    Request {
        request: Request,
        answer: oneshot::Sender<Told>,
    },
    Init {
        layout: Layout,
        answer: oneshot::Sender<Told>,
    },
    Propose {
        expected: Epoch,
        layout: Box<Layout>,
        answer: oneshot::Sender<Told>,
    },
    Recover {
        layout: Box<Layout>,
        answer: oneshot::Sender<Told>,
    },
    /// What is to be said first to a peer that is about to be dialled.
    HelloTo {
        peer: NodeId,
        answer: oneshot::Sender<Option<Hello>>,
    },
    /// Anything else that core knows by itself.
    Event(Event),
    /// What the disk has done, in order.
    Events(Vec<Event>),
    /// End the thread.
    Stop,
}

/// A client's request, on its way to the core.
#[derive(Debug)]
pub struct Request {
    pub operation: Operation,
    pub consistency: Option<Consistency>,
    pub durability: Option<Durability>,
    pub deadline: Deadline,
    pub reserved: Reserved,
}

/// What a request holds, whether or not whoever asked is still there.
#[derive(Debug)]
pub struct Reserved {
    /// Memory, until its answer was sent.
    pub memory: Held,
    /// One of those that all sessions share, until the core has answered.
    pub turn: Option<OwnedSemaphorePermit>,
}

/// An answer on its way to whoever asked.
#[derive(Debug)]
pub struct Told {
    pub answer: Answer,
    /// Memory for what it holds.
    pub memory: Option<Held>,
}

impl Told {
    /// What was held for the request is held for its answer from now on; a read for which that is not enough is
    /// refused.
    pub fn new(answer: Answer, reserved: Option<Reserved>) -> Self {
        let Some(Reserved { mut memory, turn: _ends }) = reserved else {
            return Self { answer, memory: None };
        };
        if memory.fit(answer.bytes()) || matches!(answer, Answer::Written { .. }) {
            return Self { answer, memory: Some(memory) };
        }
        let overloaded = Failure { reason: FailureReason::Overloaded, acks: 0, needed: 0 };
        Self { answer: Answer::Failed(overloaded), memory: None }
    }
}

/// The core thread has ended without an answer: the process is about to end too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the node stopped before it answered")]
pub struct Stopped;

#[derive(Debug, Clone)]
pub struct CoreHandle {
    inbox: Arc<Inbox<Input>>,
    view: watch::Receiver<Arc<View>>,
    stopping: watch::Receiver<bool>,
    clock: Clock,
}

impl CoreHandle {
    /// `stopping` becomes true when the process has been told to stop, before the core hears of it.
    pub fn new(
        inbox: Arc<Inbox<Input>>,
        view: watch::Receiver<Arc<View>>,
        stopping: watch::Receiver<bool>,
        clock: Clock,
    ) -> Self {
        Self { inbox, view, stopping, clock }
    }

    /// Why clients should not come here, for a person; `None` if they should.
    pub fn obstacle(&self) -> Option<&'static str> {
        if *self.stopping.borrow() {
            return Some("this node is about to stop");
        }
        self.view.borrow().obstacle()
    }

    pub fn watch_stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    pub fn watch_view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Hands a request over, or refuses it at once. If the receiver yields an error, the request's fate is unknown.
    pub fn request(&self, request: Request) -> Result<oneshot::Receiver<Told>, NotTaken> {
        let (answer, answered) = oneshot::channel();
        self.inbox.offer(Input::Request { request, answer })?;
        Ok(answered)
    }

    pub async fn init(&self, layout: Layout) -> Result<Answer, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.inbox.put(Input::Init { layout, answer }).await;
        answered.await.map(|told| told.answer).map_err(|_| Stopped)
    }

    pub async fn propose(&self, expected: Epoch, layout: Layout) -> Result<Answer, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.inbox.put(Input::Propose { expected, layout: Box::new(layout), answer }).await;
        answered.await.map(|told| told.answer).map_err(|_| Stopped)
    }

    pub async fn recover(&self, layout: Layout) -> Result<Answer, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.inbox.put(Input::Recover { layout: Box::new(layout), answer }).await;
        answered.await.map(|told| told.answer).map_err(|_| Stopped)
    }

    /// `None` before this node has accepted a layout.
    pub async fn hello_to(&self, peer: NodeId) -> Option<Hello> {
        let (answer, answered) = oneshot::channel();
        self.inbox.put(Input::HelloTo { peer, answer }).await;
        answered.await.ok().flatten()
    }

    /// Waits while the core is behind, and the peer waits with us.
    pub async fn frame(&self, link: LinkId, header: Header, messages: Vec<Message>) {
        let event = Event::Frame { link, header, messages };
        self.inbox.put(Input::Event(event)).await;
    }

    /// Wakes the core thread for the tasks of this runtime, see [`Inbox::wake_in_turn`].
    pub async fn wake_in_turn(&self) {
        self.inbox.wake_in_turn().await;
    }

    /// For what is rare and never turned away.
    pub fn tell(&self, event: Event) {
        self.inbox.push(Input::Event(event));
    }

    pub fn stop(&self) {
        self.inbox.push(Input::Stop);
    }
}
