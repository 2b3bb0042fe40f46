//! The network: links between processes, and what becomes of the messages on them.
//!
//! A link has two sides that learn of its end each in its own time. A direction between two machines may be
//! blocked: then nothing arrives, streams keep what was sent and deliver it late, and a side that hears nothing for
//! long gives its link up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keystore_core::effect::{Event, LinkId};
use keystore_core::id::NodeId;
use keystore_core::message::{Header, Hello, Message};
use keystore_core::peers::LinkRefusal;

use crate::coverage::Path;
use crate::disk::Ending;
use crate::machine::Standing;
use crate::plan::Delivery;
use crate::world::{Pending, World};

/// How often a machine looks whether it has to dial.
const DIAL_EVERY_MS: u64 = 40;
/// A side that hears nothing gives up between these two.
const GIVE_UP_MS: (u64, u64) = (500, 4_000);

#[derive(Debug, Clone)]
pub(crate) enum Parcel {
    Hello(Hello),
    Frame(Header, Message),
    Refusal(LinkRefusal),
    /// The other side has closed the link.
    End,
}

/// One side of a link, and what is on its way to it.
#[derive(Debug)]
struct Side {
    machine: usize,
    life: u64,
    is_open: bool,
    accepted: bool,
    /// What the other side has said first.
    offered: Option<Hello>,
    /// Sent over a stream and not yet arrived.
    stream: VecDeque<Parcel>,
    /// Frames that arrived before the side had accepted the link.
    held: Vec<(Header, Message)>,
}

/// One connection; side 0 dialled.
#[derive(Debug)]
struct Link {
    sides: [Side; 2],
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    links: BTreeMap<LinkId, Link>,
    last: u64,
    /// From whom to whom nothing arrives.
    pub(crate) blocked: BTreeSet<(usize, usize)>,
    /// From whom to whom nothing arrives before a moment: it comes late, and in its order.
    late: BTreeMap<(usize, usize), u64>,
}

impl Network {
    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.contains(&(from, to))
    }

    fn side(&self, link: LinkId, n: usize) -> Option<usize> {
        let sides = &self.links.get(&link)?.sides;
        sides.iter().position(|side| side.machine == n && side.is_open)
    }

    pub(crate) fn machine(&self, link: LinkId, side: usize) -> Option<usize> {
        self.machines(link).map(|machines| machines[side])
    }

    /// The machine at the other end.
    pub(crate) fn peer(&self, link: LinkId, n: usize) -> Option<usize> {
        let side = self.side(link, n)?;
        self.machine(link, 1 - side)
    }

    /// What was said first to this machine on this link.
    pub(crate) fn offered(&self, link: LinkId, n: usize) -> Option<&Hello> {
        self.links.get(&link)?.sides[self.side(link, n)?].offered.as_ref()
    }

    pub(crate) fn open(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    fn machines(&self, link: LinkId) -> Option<[usize; 2]> {
        self.links.get(&link).map(|link| [link.sides[0].machine, link.sides[1].machine])
    }
}

impl World {
    /// Each process dials the members of higher UUID to which it has no link.
    pub(crate) fn dial(&mut self) {
        for dialler in 0..self.machines.len() {
            for other in 0..self.machines.len() {
                if self.is_to_dial(dialler, other) && self.may_dial(dialler, other) {
                    let is_misdirected = self.rng.chance(self.plan.misdirected_percent);
                    let to = if is_misdirected { self.rng.index(self.machines.len()) } else { other };
                    self.dial_one(dialler, to, self.machines[other].id);
                }
            }
        }
        self.after(DIAL_EVERY_MS, Pending::Dial);
    }

    /// The members of higher UUID that are not lost, and those that may not know of us, or that we are none any more: they
    /// are behind, or ahead. And whoever has departed without knowing that it was a member.
    fn is_to_dial(&self, dialler: usize, other: usize) -> bool {
        let epoch = |n: usize| self.machines[n].node.as_ref()?.layout().map(|layout| layout.epoch);
        let (ours, theirs) = (self.machines[dialler].id, self.machines[other].id);
        let layout = self.machines[dialler].node.as_ref().and_then(|node| node.layout());
        layout.is_some_and(|layout| match layout.member(theirs) {
            Some(member) if member.is_lost => false,
            Some(_) => ours < theirs || ours != theirs && epoch(other) != epoch(dialler),
            None => layout.departed.contains(&theirs) && epoch(other).is_none(),
        })
    }

    fn may_dial(&self, dialler: usize, other: usize) -> bool {
        let network = &self.network;
        // Whoever should be dialled instead dials only where there is no link at all.
        let is_ours = self.machines[dialler].id < self.machines[other].id;
        let has_link = |link: &Link| {
            let [side, peer] = &link.sides;
            side.machine == dialler && side.is_open && peer.machine == other
                || !is_ours && peer.machine == dialler && peer.is_open && side.machine == other
        };
        self.is_running(dialler)
            && self.is_running(other)
            && !network.is_blocked(dialler, other)
            && !network.is_blocked(other, dialler)
            && !network.links.values().any(has_link)
    }

    /// Dials the address at which a node is thought to be: somebody else may be there by now.
    fn dial_one(&mut self, dialler: usize, other: usize, to: NodeId) {
        if dialler == other || !self.is_running(other) {
            return;
        }
        let Some(hello) = self.machines[dialler].node.as_ref().and_then(|node| node.hello(to)) else {
            return;
        };
        self.check_said(dialler, &hello.header);
        self.network.last += 1;
        let link = LinkId(self.network.last);
        let side = |machine: usize| Side {
            machine,
            life: self.machines[machine].life,
            is_open: true,
            accepted: false,
            offered: None,
            stream: VecDeque::new(),
            held: Vec::new(),
        };
        let sides = [side(dialler), side(other)];
        self.network.links.insert(link, Link { sides });
        self.post(link, 1, Parcel::Hello(hello));
    }

    fn delay(&mut self) -> u64 {
        self.rng.between(1, self.plan.delay_ms_max.max(1))
    }

    /// Puts something on its way to one side of a link.
    fn post(&mut self, link: LinkId, side: usize, parcel: Parcel) {
        let delay = self.delay();
        let delivery = self.delivery;
        let Some(open) = self.network.links.get_mut(&link) else { return };
        match delivery {
            Delivery::Datagrams { .. } => {
                self.after(delay, Pending::Parcel { link, side, parcel: Some(Box::new(parcel)) });
            }
            Delivery::Stream => {
                open.sides[side].stream.push_back(parcel);
                self.after(delay, Pending::Parcel { link, side, parcel: None });
            }
        }
    }

    pub(crate) fn send(&mut self, n: usize, link: LinkId, header: Header, message: Message) {
        let Some(side) = self.network.side(link, n) else { return };
        let other = 1 - side;
        if let Delivery::Datagrams { drop_percent, duplicate_percent } = self.delivery {
            // Links lose nothing while they are up, and this is told once on each; whatever else is lost is asked for again.
            let is_told_once = matches!(message, Message::Standing(_));
            if self.rng.chance(drop_percent) && !is_told_once {
                self.coverage.count(Path::MessageDropped);
                self.note(format_args!("machine {n}: loses on its way: {message:?}"));
                return;
            }
            if self.rng.chance(duplicate_percent) {
                self.coverage.count(Path::MessageDuplicated);
                self.post(link, other, Parcel::Frame(header, message.clone()));
            }
        }
        self.post(link, other, Parcel::Frame(header, message));
    }

    /// Something has arrived, unless its way is blocked.
    pub(crate) fn arrive(&mut self, link: LinkId, side: usize, parcel: Option<Box<Parcel>>) {
        let Some(open) = self.network.links.get(&link) else { return };
        let (from, to) = (open.sides[1 - side].machine, open.sides[side].machine);
        let late_until = self.network.late.get(&(from, to)).copied();
        if let Some(until) = late_until.filter(|until| *until > self.now_ms) {
            return self.after(until - self.now_ms, Pending::Parcel { link, side, parcel });
        }
        if self.network.is_blocked(from, to) {
            match (self.delivery, parcel.as_deref()) {
                (Delivery::Datagrams { .. }, Some(Parcel::Frame(..))) => {}
                // It is sent again and again.
                _ => self.after(50, Pending::Parcel { link, side, parcel }),
            }
            return;
        }
        let life = self.machines[to].life;
        let Some(open) = self.network.links.get_mut(&link) else { return };
        let here = &mut open.sides[side];
        let Some(parcel) = parcel.map(|parcel| *parcel).or_else(|| here.stream.pop_front()) else { return };
        if !here.is_open || here.life != life {
            return;
        }
        match parcel {
            Parcel::Hello(hello) => {
                here.offered = Some(hello.clone());
                self.step(to, Event::LinkOffered { link, hello });
            }
            Parcel::Frame(header, message) if here.accepted => {
                self.step(to, Event::Frame { link, header, messages: vec![message] });
            }
            Parcel::Frame(header, message) => here.held.push((header, message)),
            Parcel::End => self.hear_end(link, side),
            Parcel::Refusal(refusal) => {
                let peer = self.machines[from].id;
                if refusal == LinkRefusal::WrongNode {
                    self.coverage.count(Path::MisdirectedLinkRefused);
                }
                // What we said first is what the other side was offered and refuses.
                let said = open.sides[1 - side].offered.as_ref().map(|hello| hello.header.generation);
                self.hear_end(link, side);
                if let Some(generation) = said {
                    self.step(to, Event::HelloRefused { peer, generation, refusal });
                }
            }
        }
    }

    fn hear_end(&mut self, link: LinkId, side: usize) {
        let Some(open) = self.network.links.get_mut(&link) else { return };
        open.sides[side].is_open = false;
        let (machine, life) = (open.sides[side].machine, open.sides[side].life);
        self.forget_if_closed(link);
        if self.machines[machine].life == life {
            self.step(machine, Event::LinkClosed { link });
        }
    }

    fn forget_if_closed(&mut self, link: LinkId) {
        if self.network.links.get(&link).is_some_and(|link| link.sides.iter().all(|side| !side.is_open)) {
            self.network.links.remove(&link);
        }
    }

    /// A side has accepted the link; returns what may be handed to it now.
    pub(crate) fn accept_link(&mut self, n: usize, link: LinkId, hello: Hello) -> Vec<Event> {
        self.check_said(n, &hello.header);
        let Some(side) = self.network.side(link, n) else { return Vec::new() };
        let Some(open) = self.network.links.get_mut(&link) else { return Vec::new() };
        let here = &mut open.sides[side];
        here.accepted = true;
        let held = std::mem::take(&mut here.held);
        if side == 1 {
            self.post(link, 0, Parcel::Hello(hello));
        }
        held.into_iter()
            .map(|(header, message)| Event::Frame { link, header, messages: vec![message] })
            .collect()
    }

    /// A process closes its side and, if it can be reached, the other hears of it.
    pub(crate) fn close(&mut self, n: usize, link: LinkId, last_word: Parcel) -> Option<Event> {
        let side = self.network.side(link, n)?;
        let open = self.network.links.get_mut(&link)?;
        open.sides[side].is_open = false;
        open.sides[side].stream.clear();
        if open.sides[1 - side].is_open {
            self.post(link, 1 - side, last_word);
        }
        self.forget_if_closed(link);
        Some(Event::LinkClosed { link })
    }

    /// The link breaks: what is on it is lost, and each side hears of it after a while.
    pub(crate) fn break_link(&mut self, link: LinkId) {
        let Some(open) = self.network.links.get_mut(&link) else { return };
        for side in &mut open.sides {
            side.stream.clear();
        }
        self.coverage.count(Path::LinkBroken);
        self.note(format_args!("link {link:?} breaks"));
        for side in 0..2 {
            self.post(link, side, Parcel::End);
        }
    }

    /// The kernel says goodbye for a process that was killed; a machine without power says nothing.
    pub(crate) fn end_links_of(&mut self, n: usize, ending: Ending) {
        for link in self.network.open() {
            if self.network.side(link, n).is_none() {
                continue;
            }
            if ending == Ending::Killed {
                self.close(n, link, Parcel::End);
                continue;
            }
            let Some(machines) = self.network.machines(link) else { continue };
            let side = usize::from(machines[1] == n);
            if let Some(open) = self.network.links.get_mut(&link) {
                open.sides[side].is_open = false;
                open.sides[side].stream.clear();
            }
            self.forget_if_closed(link);
        }
        self.doubt_links();
    }

    /// Something may have become silent: each side that hears nothing gives up in its own time.
    pub(crate) fn doubt_links(&mut self) {
        for link in self.network.open() {
            let Some([a, b]) = self.network.machines(link) else { continue };
            if self.is_silent(a, b) || self.is_silent(b, a) {
                for side in 0..2 {
                    let wait = self.rng.between(GIVE_UP_MS.0, GIVE_UP_MS.1);
                    self.after(wait, Pending::GiveUp { link, side });
                }
            }
        }
    }

    /// A keep-alive of `from` would get no answer.
    fn is_silent(&self, from: usize, to: usize) -> bool {
        self.network.is_blocked(from, to)
            || self.network.is_blocked(to, from)
            || self.machines[to].standing != Standing::Running
    }

    pub(crate) fn give_up(&mut self, link: LinkId, side: usize) {
        let Some(open) = self.network.links.get(&link) else { return };
        let (here, there) = (open.sides[side].machine, open.sides[1 - side].machine);
        let is_dead = !open.sides[1 - side].is_open;
        if open.sides[side].is_open && (is_dead || self.is_silent(here, there)) {
            self.coverage.count(Path::LinkGivenUp);
            if let Some(event) = self.close(here, link, Parcel::End) {
                self.step(here, event);
            }
        }
    }

    /// Nothing arrives in these directions until everything is healed.
    pub(crate) fn block(&mut self, directions: &[(usize, usize)]) {
        self.network.blocked.extend(directions);
        self.doubt_links();
    }

    pub(crate) fn unblock(&mut self) {
        self.network.blocked.clear();
    }

    /// What one machine sends to another comes so much later from now on, for so long.
    pub(crate) fn slow_down(&mut self, from: usize, to: usize, for_ms: u64) {
        let until = self.now_ms + for_ms;
        let late = self.network.late.entry((from, to)).or_default();
        *late = until.max(*late);
        self.coverage.count(Path::LinkSlow);
    }
}
