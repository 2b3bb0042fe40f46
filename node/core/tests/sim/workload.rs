//! The clients: each asks one thing after another, and often looks at once, through another node, at what it or
//! somebody else has just done. That is what notices a read that shows a write before enough replicas hold it.

use std::collections::BTreeMap;

use keystore_core::causal::OperationId;
use keystore_core::effect::FailureReason;
use keystore_core::layout::KeyspaceMode;
use keystore_core::message::{Refusal, ScanRange};
use keystore_core::partition::{DEFAULT_KEYSPACE, PartitionCount, RecordKey, encoded_prefix};
use keystore_core::quorum::{Consistency, Durability};

use crate::coverage::Path;
use crate::plan::{Class, Delivery, TIMEOUT_MS};
use crate::request::{Asked, Knows, Told};
use crate::world::{Pending, World};

/// A client that has heard nothing gives up so long after the deadline.
const PATIENCE_MS: u64 = 300;

/// The keyspace that keeps siblings.
pub(crate) const CARTS: &str = "carts";

#[derive(Debug, Default)]
pub(crate) struct Client {
    /// The request whose answer it waits for.
    waits_for: Option<usize>,
    /// A key to look at again, so many times.
    looks: Option<(usize, u64)>,
    /// How many things it has asked.
    asked: u64,
    /// What it has last seen of each key in a keyspace that keeps siblings.
    knows: BTreeMap<RecordKey, Knows>,
}

/// A request before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) client: usize,
    pub(crate) asked: Asked,
    pub(crate) level: Consistency,
    pub(crate) durability: Durability,
    pub(crate) is_promised: bool,
}

/// The keys of a run: half of them share a partition, so that pages of scans have something to be cut from.
pub(crate) fn keys(classes: &[Class], partitions: PartitionCount) -> Vec<RecordKey> {
    let shared = RecordKey::new(DEFAULT_KEYSPACE, b"shared").unwrap().partition(partitions);
    let name = |(n, class): (usize, &Class)| {
        let keyspace = if *class == Class::Cart { CARTS } else { DEFAULT_KEYSPACE };
        let mut candidates =
            (0..).map(|j| RecordKey::new(keyspace, format!("{class:?} {n}.{j}").as_bytes()).unwrap());
        candidates.find(|key| n % 2 == 1 || key.partition(partitions) == shared).unwrap()
    };
    classes.iter().enumerate().map(name).collect()
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
        let wish = self.next_wish(client);
        let machine = self.rng.index(self.machines.len());
        self.clients[client].asked += 1;
        self.clients[client].waits_for = Some(self.requests.len());
        let index = self.requests.len();
        self.after(
            TIMEOUT_MS + PATIENCE_MS,
            Pending::ClientGivesUp { index, deadline_ms: self.now_ms + TIMEOUT_MS },
        );
        self.ask(machine, wish);
    }

    fn next_wish(&mut self, client: usize) -> Wish {
        if let Some((n, times)) = self.clients[client].looks.take() {
            self.clients[client].looks = times.checked_sub(1).map(|fewer| (n, fewer));
            return self.wish(client, n, Asked::Get { key: self.keys[n].clone() });
        }
        let n = self.rng.index(self.keys.len());
        if self.rng.chance(40) {
            let times = self.rng.between(0, 3);
            self.clients[client].looks = Some((n, times));
        }
        let asked = if self.rng.chance(self.plan.scan_percent) {
            self.scan(n)
        } else if self.plan.keys[n] == Class::Cart {
            self.cart(client, n)
        } else {
            self.register(client, n)
        };
        self.wish(client, n, asked)
    }

    fn wish(&mut self, client: usize, n: usize, asked: Asked) -> Wish {
        use Consistency::{All, One, Quorum};
        let (levels, durabilities): (&[_], &[_]) = match self.plan.keys[n] {
            Class::Strict | Class::Cart => (&[Quorum, Quorum, Quorum, All], &[Durability::Synced]),
            Class::Mixed => (&[One, Quorum, Quorum, All], &[Durability::Synced]),
            Class::Loose => (&[One, Quorum, All], &[Durability::Synced, Durability::Periodic]),
        };
        // A page may have keys of every class.
        let is_scan = matches!(asked, Asked::Scan { .. });
        let level = self.rng.pick(if is_scan { &[Quorum] } else { levels });
        let durability = self.rng.pick(durabilities);
        let is_promised = self.plan.keys[n] != Class::Loose && level >= Quorum;
        Wish { client, asked, level, durability, is_promised }
    }

    fn register(&mut self, client: usize, n: usize) -> Asked {
        let key = self.keys[n].clone();
        match self.rng.between(1, 10) {
            1..=5 => {
                let ttl_ms = self.rng.chance(self.plan.ttl_percent).then(|| self.rng.between(1, 1_500));
                Asked::Put { key, value: self.value(client), ttl_ms, knows: None, operation: None }
            }
            6 => Asked::Delete { key, knows: None },
            _ => Asked::Get { key },
        }
    }

    fn cart(&mut self, client: usize, n: usize) -> Asked {
        let key = self.keys[n].clone();
        let known = self.clients[client].knows.get(&key).cloned();
        let choice = if self.plan.only_adds { self.rng.between(7, 11) } else { self.rng.between(1, 20) };
        match choice {
            1..=11 => {
                let operation = self.rng.chance(70).then(|| {
                    let number = self.clients[client].asked;
                    OperationId(((u128::from(number) << 64) | (client as u128 + 1)).to_be_bytes())
                });
                let ttl_ms = self.rng.chance(self.plan.ttl_percent / 4).then(|| self.rng.between(1, 1_500));
                let knows = known.filter(|_| choice <= 6);
                Asked::Put { key, value: self.value(client), ttl_ms, knows, operation }
            }
            12 | 13 => Asked::Delete { key, knows: known },
            14 => Asked::Delete { key, knows: None },
            _ => Asked::Get { key },
        }
    }

    fn scan(&mut self, n: usize) -> Asked {
        let key = &self.keys[n];
        let keyspace = if self.plan.keys[n] == Class::Cart { CARTS } else { DEFAULT_KEYSPACE };
        let partition = key.partition(self.layout.partitions);
        let after = self.rng.chance(30).then(|| key.clone());
        let limit = self.rng.between(1, 3) as u32;
        let prefix = encoded_prefix(keyspace, b"").unwrap();
        Asked::Scan { keyspace, range: ScanRange { partition, prefix, after, limit } }
    }

    fn value(&self, client: usize) -> Vec<u8> {
        format!("{client}.{}", self.clients[client].asked).into_bytes()
    }

    /// The keys of the run that a range is about, of which promises are checked.
    pub(crate) fn keys_in(&self, keyspace: &str, range: &ScanRange) -> Vec<RecordKey> {
        let is_in = |(key, class): &(&RecordKey, &Class)| {
            **class != Class::Loose
                && key.keyspace() == keyspace
                && key.partition(self.layout.partitions) == range.partition
                && range.after.as_ref().is_none_or(|after| key.place() > after.place())
        };
        let keys = self.keys.iter().zip(&self.plan.keys).filter(is_in);
        keys.map(|(key, _)| key.clone()).collect()
    }

    /// What a client makes of an answer; `None` if it asks again instead, under the same operation id.
    pub(crate) fn hear(&mut self, index: usize, told: Told) -> Option<Told> {
        let request = &self.requests[index];
        let is_unsure = match &told {
            // What was sent twice, or doubled on its way, may have been refused once and taken once.
            Told::Failed(reason) => request.is_repeated || self.may_be_doubled(*reason),
            Told::Unknown => true,
            Told::Read(_) | Told::Written { .. } | Told::Scanned { .. } => false,
        };
        if !is_unsure || !request.asked.is_write() {
            return Some(told);
        }
        let has_operation = matches!(request.asked, Asked::Put { operation: Some(_), .. });
        if has_operation && !self.is_healed && self.rng.chance(60) {
            self.coverage.count(Path::RetriedUnderItsOperation);
            self.requests[index].is_repeated = true;
            self.after(1, Pending::AskAgain { index });
            return None;
        }
        Some(Told::Unknown)
    }

    fn may_be_doubled(&self, reason: FailureReason) -> bool {
        self.doubles_messages() && matches!(reason, FailureReason::Refused(_))
    }

    /// True if a message may arrive twice: then any write may have been asked for twice.
    pub(crate) fn doubles_messages(&self) -> bool {
        matches!(self.plan.delivery, Delivery::Datagrams { duplicate_percent: 1.., .. })
    }

    pub(crate) fn ask_again(&mut self, index: usize) {
        if self.is_healed {
            // It was answered in time, and is not asked again after all.
            self.requests[index].excused = true;
            return self.tell(index, Told::Unknown);
        }
        self.requests[index].deadline_ms = self.now_ms + TIMEOUT_MS;
        self.after(
            TIMEOUT_MS + PATIENCE_MS,
            Pending::ClientGivesUp { index, deadline_ms: self.now_ms + TIMEOUT_MS },
        );
        let machine = self.rng.index(self.machines.len());
        self.send_request(machine, index);
    }

    /// The client that waited for this notes what it has seen, thinks for a while or not at all, and asks again.
    pub(crate) fn client_is_told(&mut self, index: usize) {
        let request = &self.requests[index];
        let client = request.client;
        let Some(state) = self.clients.get_mut(client).filter(|state| state.waits_for == Some(index)) else {
            return;
        };
        state.waits_for = None;
        if let (Some(key), Some((_, told))) = (request.asked.key(), &request.told)
            && let Some(knows) = knows(&request.asked, told)
        {
            state.knows.insert(key.clone(), knows);
        }
        let is_hasty = state.looks.is_some() && !matches!(request.told, Some((_, Told::Failed(_))));
        let wait = if is_hasty { 1 } else { self.rng.between(1, self.plan.think_ms_max.max(1)) };
        self.after(wait, Pending::Client { client });
    }

    pub(crate) fn count_told(&mut self, told: &Told) {
        let path = match told {
            Told::Written { .. } => Path::Acknowledged,
            Told::Unknown => Path::Unknown,
            Told::Read(values) if values.values.is_empty() => Path::FoundMissing,
            Told::Read(_) => Path::ReadAnswered,
            Told::Scanned { .. } => Path::Scanned,
            Told::Failed(reason) => {
                let special = match reason {
                    FailureReason::Overloaded => Some(Path::RefusedForManyRequests),
                    FailureReason::Refused(Refusal::Overloaded) => Some(Path::RefusedForManyWrites),
                    _ => None,
                };
                if let Some(path) = special {
                    self.coverage.count(path);
                }
                Path::Failed
            }
        };
        self.coverage.count(path);
    }
}

/// What an answer lets a client know of its key.
fn knows(asked: &Asked, told: &Told) -> Option<Knows> {
    match (asked, told) {
        (Asked::Get { .. }, Told::Read(values)) => {
            let token = values.context.clone()?;
            Some(Knows { token, values: values.values.iter().map(|(value, _)| value.to_vec()).collect() })
        }
        (Asked::Put { value, knows, .. }, Told::Written { token: Some(token), .. }) => {
            let mut values = knows.as_ref().map(|knows| knows.values.clone()).unwrap_or_default();
            values.push(value.clone());
            Some(Knows { token: token.clone(), values })
        }
        _ => None,
    }
}

pub(crate) fn modes() -> BTreeMap<String, KeyspaceMode> {
    BTreeMap::from([(CARTS.to_owned(), KeyspaceMode::Siblings)])
}
