//! The clients: each asks one thing after another, and often looks at once, through another node, at what it or
//! somebody else has just done. That is what notices a read that shows a write before enough replicas hold it.

use keystore_core::partition::RecordKey;

use crate::history::Asked;
use crate::plan::TIMEOUT_MS;
use crate::world::{Pending, World};

/// A client that has heard nothing gives up so long after the deadline.
const PATIENCE_MS: u64 = 300;

#[derive(Debug, Default)]
pub(crate) struct Client {
    /// The operation whose answer it waits for.
    waits_for: Option<usize>,
    /// A key to look at again, so many times.
    looks: Option<(RecordKey, u64)>,
    /// How many things it has asked.
    asked: u64,
}

impl World {
    pub(crate) fn let_clients_in(&mut self) {
        for client in 0..self.plan.clients {
            self.clients.push(Client::default());
            let wait = self.rng.between(0, self.plan.think_ms_max);
            self.after(wait, Pending::Client { client });
        }
    }

    pub(crate) fn client_acts(&mut self, client: usize) {
        if self.is_healed {
            return;
        }
        let (key, asked) = self.next_of(client);
        let machine = self.rng.index(self.machines.len());
        self.clients[client].asked += 1;
        let index = self.history.len();
        self.clients[client].waits_for = Some(index);
        self.after(TIMEOUT_MS + PATIENCE_MS, Pending::ClientGivesUp { index });
        self.ask(machine, key, asked, None);
    }

    fn next_of(&mut self, client: usize) -> (RecordKey, Asked) {
        if let Some((key, times)) = self.clients[client].looks.take() {
            self.clients[client].looks = times.checked_sub(1).map(|fewer| (key.clone(), fewer));
            return (key, Asked::Get);
        }
        let key = key(self.rng.between(1, self.plan.keys));
        if self.rng.chance(40) {
            let times = self.rng.between(0, 3);
            self.clients[client].looks = Some((key.clone(), times));
        }
        let asked = match self.rng.between(1, 10) {
            1..=5 => Asked::Put(format!("{client}.{}", self.clients[client].asked).into_bytes()),
            6 => Asked::Delete,
            _ => Asked::Get,
        };
        (key, asked)
    }

    /// The client that waited for this thinks for a while, or not at all, and asks again.
    pub(crate) fn client_is_told(&mut self, index: usize) {
        let waits = |client: &Client| client.waits_for == Some(index);
        let Some(client) = self.clients.iter().position(waits) else { return };
        self.clients[client].waits_for = None;
        let is_hasty = self.clients[client].looks.is_some();
        let wait = if is_hasty { 1 } else { self.rng.between(1, self.plan.think_ms_max.max(1)) };
        self.after(wait, Pending::Client { client });
    }
}

pub(crate) fn key(n: u64) -> RecordKey {
    RecordKey::new("default", format!("key {n}").as_bytes()).unwrap()
}
