//! What clients asked and were told, in the words of the checker that judges every run of the store.

use keystore_core::effect::Values;
use keystore_core::partition::RecordKey;
use keystore_core::stamp::Stamp;
use keystore_history as history;
use keystore_history::{
    Action, Context, Expiry, History, Operation, Put, ReadOutcome, Removal, Rules, WriteOutcome,
};

use crate::machine::EPOCH_MS;
use crate::request::{Asked, Knows, Request, Told};
use crate::violation::{Checker, Violation};
use crate::workload::CARTS;
use crate::world::{TICKS_PER_MS, World};

impl World {
    /// Judges all that clients were told.
    pub(crate) fn check_history(&mut self) {
        let mut operations = Vec::new();
        for request in &self.requests {
            self.write_down(request, &mut operations);
        }
        let quorum = self.least_quorum();
        let rules = Rules {
            causal_keyspaces: [CARTS.to_owned()].into(),
            sees_deletes: false,
            // What is salvaged may have fewer replicas.
            write_quorum: u32::try_from(quorum).ok().filter(|_| !self.plan.recovers()),
        };
        let violations = history::check(&History { operations, scans: Vec::new() }, &rules);
        if let Some(violation) = violations.first() {
            let key = &violation.later.key;
            let key = RecordKey::new(&key.keyspace, &key.key).unwrap();
            let what = violation.to_string();
            let until_ms = violation.later.answered_at / TICKS_PER_MS;
            let checker = Checker::History(violation.promise);
            self.violate(Violation { until_ms, ..Violation::new(checker, &key, what) });
        }
    }

    fn write_down(&self, request: &Request, out: &mut Vec<Operation>) {
        let operation = |key: &RecordKey, action| {
            let (answered_at, _) =
                request.told.as_ref().map_or((u64::MAX, &Told::Unknown), |(at, told)| (*at, told));
            Operation {
                session: request.client as u32,
                key: history::Key::new(key.keyspace(), &key.user_key()),
                asked_at: request.asked_at,
                answered_at,
                deadline: (!request.excused).then_some((request.deadline_ms + 1) * TICKS_PER_MS),
                is_promised: request.is_promised && !request.lost.contains(key),
                action,
            }
        };
        let told = request.told.as_ref().map_or(&Told::Unknown, |(_, told)| told);
        match &request.asked {
            Asked::Get { key } => out.push(operation(key, Action::Get(read(told)))),
            Asked::Put { key, value, knows, .. } => {
                let put = Put {
                    value: value.clone(),
                    context: context(knows.as_ref()),
                    expiry: request.expires_ms.map(|expires_ms| self.expiry(expires_ms)),
                    is_repeated: request.is_repeated || self.doubles_messages(),
                    outcome: written(told),
                };
                out.push(operation(key, Action::Put(put)));
            }
            Asked::Delete { key, knows } => {
                let context = knows.as_ref().map_or(Context::WhateverIsThere, |knows| context(Some(knows)));
                out.push(operation(key, Action::Delete(Removal { context, outcome: written(told) })));
            }
            Asked::Scan { keyspace, range } => {
                let Told::Scanned { entries, next } = told else { return };
                // A page of a partition is a read of each key of that partition up to where the page ends.
                for key in self.keys_in(keyspace, range) {
                    if next.as_ref().is_some_and(|next| key.place() > next.place()) {
                        continue;
                    }
                    let found = entries.iter().find(|(found, _)| *found == key);
                    let outcome = found.map_or(ReadOutcome::Missing, |(_, values)| seen(values));
                    out.push(operation(&key, Action::Get(outcome)));
                }
            }
        }
    }

    /// When a value may vanish: whoever reads it goes by a clock of its own.
    fn expiry(&self, (first, last): (u64, u64)) -> Expiry {
        let (slowest, fastest) = self.clock_range;
        let ticks = |wall_ms: u64, clock_ms: i64| {
            let now_ms = wall_ms as i64 - EPOCH_MS as i64 - clock_ms;
            now_ms.max(0) as u64 * TICKS_PER_MS
        };
        Expiry { not_before: ticks(first, fastest), not_after: ticks(last, slowest) + TICKS_PER_MS }
    }
}

fn context(knows: Option<&Knows>) -> Context {
    Context::Values(knows.map(|knows| knows.values.clone()).unwrap_or_default())
}

fn stamp(stamp: Stamp) -> history::Stamp {
    history::Stamp(stamp.to_bytes())
}

fn seen(values: &Values) -> ReadOutcome {
    let seen =
        values.values.iter().map(|(value, at)| history::Seen { value: value.to_vec(), stamp: stamp(*at) });
    let seen: Vec<_> = seen.collect();
    if seen.is_empty() { ReadOutcome::Missing } else { ReadOutcome::Found(seen) }
}

fn read(told: &Told) -> ReadOutcome {
    match told {
        Told::Read(values) => seen(values),
        Told::Failed(reason) => ReadOutcome::Unanswered(format!("{reason:?}")),
        Told::Unknown | Told::Written { .. } | Told::Scanned { .. } => {
            ReadOutcome::Unanswered("unknown".to_owned())
        }
    }
}

fn written(told: &Told) -> WriteOutcome {
    match told {
        Told::Written { stamp: at, acks, .. } => WriteOutcome::Done { stamp: stamp(*at), acks: *acks as u32 },
        Told::Failed(reason) => WriteOutcome::Failed(format!("{reason:?}")),
        Told::Unknown | Told::Read(_) | Told::Scanned { .. } => {
            WriteOutcome::Unknown { acks: 0, why: "unknown".to_owned() }
        }
    }
}
