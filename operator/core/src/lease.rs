//! Who leads, of the operators that run: one Lease, and one rule that each of them follows.
//!
//! A Lease is taken from its holder only after this process has seen it stand unchanged, by its own steady clock, for
//! as long as its holder was given: clocks of different machines are never compared. Every write is bound to the
//! version that was looked at, so of two that try one is refused. Sending, waiting and giving up is the controller's.
//! Invariant: who renewed at a moment may write for `WRITES_WITHIN` from then, and nobody else claims before `TERM`.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

/// The Lease's name, in the operator's own namespace.
pub const LEASE: &str = "keystore-operator";
/// How long a Lease has to stand unchanged before somebody else takes it.
pub const TERM: Duration = Duration::from_secs(15);
/// How long after the beginning of its last renewal a leader may write. What is left of the term is for a write that
/// was sent in the last moment.
pub const WRITES_WITHIN: Duration = Duration::from_secs(10);
/// How often the leader renews: three tries fit into the time in which it may write.
pub const RENEWED_EVERY: Duration = Duration::from_secs(2);
/// How often the others look.
pub const LOOKED_AT_EVERY: Duration = Duration::from_secs(2);

const TERM_SECONDS: i32 = 15;

/// When a look at the Lease was taken.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// By a clock that never jumps, from any start.
    pub steady: Duration,
    /// For people who read the Lease; nothing is decided by it.
    pub wall: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Write this: create it where there is no Lease, else replace the version that it names. Who succeeds leads.
    Claim(Box<Lease>),
    /// Somebody else leads, or did so too short a time ago.
    Follow { holder: String },
}

/// One operator's view of the Lease, from look to look.
#[derive(Debug)]
pub struct Election {
    me: String,
    seen: Option<Sighting>,
}

#[derive(Debug)]
struct Sighting {
    /// `None`: there was no Lease.
    spec: Option<LeaseSpec>,
    holder: Option<String>,
    term: Duration,
    since: Duration,
}

impl Election {
    /// `me` is unlike the name of every other process that ever ran.
    pub fn new(me: String) -> Self {
        Self { me, seen: None }
    }

    pub fn me(&self) -> &str {
        &self.me
    }

    /// To be called with every Lease that was read, `None` if there is none.
    pub fn look(&mut self, live: Option<&Lease>, at: Moment) -> Verdict {
        let spec = live.map(|lease| lease.spec.clone().unwrap_or_default());
        let sighting = match self.seen.take() {
            Some(seen) if seen.spec == spec => seen,
            before => sight(spec, before, at.steady),
        };
        let verdict = match &sighting.holder {
            Some(holder) if *holder != self.me && at.steady - sighting.since < sighting.term => {
                Verdict::Follow { holder: holder.clone() }
            }
            Some(_) | None => Verdict::Claim(Box::new(self.claim(live, at.wall))),
        };
        self.seen = Some(sighting);
        verdict
    }

    fn claim(&self, live: Option<&Lease>, wall: Timestamp) -> Lease {
        let Some(live) = live else {
            let spec = LeaseSpec { lease_transitions: Some(0), ..self.held_since(wall) };
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            return Lease { metadata, spec: Some(spec) };
        };
        let old = live.spec.clone().unwrap_or_default();
        let spec = if old.holder_identity.as_deref() == Some(&self.me) {
            LeaseSpec { renew_time: Some(MicroTime(wall)), ..old }
        } else {
            let transitions = old.lease_transitions.unwrap_or(0).saturating_add(1);
            LeaseSpec { lease_transitions: Some(transitions), ..self.held_since(wall) }
        };
        Lease { spec: Some(spec), ..live.clone() }
    }

    fn held_since(&self, wall: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(TERM_SECONDS),
            acquire_time: Some(MicroTime(wall)),
            renew_time: Some(MicroTime(wall)),
            ..LeaseSpec::default()
        }
    }
}

/// A Lease that was deleted under its holder's feet still counts as the holder's for its term: the holder, which is
/// still writing, has the time to notice and to make it anew.
fn sight(spec: Option<LeaseSpec>, before: Option<Sighting>, now: Duration) -> Sighting {
    let (holder, term) = match &spec {
        Some(spec) => {
            let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
            (holder, seconds.map_or(TERM, Duration::from_secs))
        }
        None => before.map_or((None, TERM), |before| (before.holder, before.term)),
    };
    Sighting { spec, holder, term, since: now }
}

/// What a leader that stops leaves behind, so that nobody has to wait for the end of its term.
pub fn released(held: &Lease) -> Lease {
    let old = held.spec.clone().unwrap_or_default();
    let spec = LeaseSpec { holder_identity: None, renew_time: None, acquire_time: None, ..old };
    Lease { spec: Some(spec), ..held.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment whose wall clock says something else on each machine.
    fn at(seconds: u64) -> Moment {
        let wall = Timestamp::from_second(1_000_000 - i64::try_from(seconds).unwrap()).unwrap();
        Moment { steady: Duration::from_secs(seconds), wall }
    }

    fn claimed(verdict: Verdict) -> Lease {
        match verdict {
            Verdict::Claim(lease) => *lease,
            Verdict::Follow { holder } => panic!("follows {holder}"),
        }
    }

    fn follows(verdict: &Verdict, whom: &str) -> bool {
        *verdict == Verdict::Follow { holder: whom.to_owned() }
    }

    fn stored(mut lease: Lease, version: &str) -> Lease {
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    fn of(lease: &Lease) -> (Option<&str>, Option<i32>) {
        let spec = lease.spec.as_ref().unwrap();
        (spec.holder_identity.as_deref(), spec.lease_transitions)
    }

    #[test]
    fn a_lease_is_taken_only_after_it_stood_still_for_its_term_as_seen_here() {
        let (mut one, mut two) = (Election::new("one".into()), Election::new("two".into()));
        let lease = stored(claimed(one.look(None, at(0))), "1");
        assert_eq!(of(&lease), (Some("one"), Some(0)));
        // Two looks for the first time when the renewal is long past, and still waits a whole term.
        assert!(follows(&two.look(Some(&lease), at(100)), "one"));
        assert!(follows(&two.look(Some(&lease), at(114)), "one"));
        let renewed = stored(claimed(one.look(Some(&lease), at(3))), "2");
        assert_eq!(renewed.spec.as_ref().unwrap().acquire_time, lease.spec.as_ref().unwrap().acquire_time);
        assert!(follows(&two.look(Some(&renewed), at(114)), "one"), "a renewal begins another term");
        assert!(follows(&two.look(Some(&renewed), at(128)), "one"));
        let taken = claimed(two.look(Some(&renewed), at(129)));
        assert_eq!(
            (of(&taken), taken.metadata.resource_version.as_deref()),
            ((Some("two"), Some(1)), Some("2"))
        );
        assert!(follows(&one.look(Some(&stored(taken, "3")), at(4)), "two"));
    }

    #[test]
    fn the_lease_itself_says_how_long_its_term_is() {
        let mut one = Election::new("one".into());
        let mut lease = stored(claimed(one.look(None, at(0))), "1");
        lease.spec.as_mut().unwrap().lease_duration_seconds = Some(60);
        let mut two = Election::new("two".into());
        for (second, expected) in [(0, true), (59, true), (60, false)] {
            assert_eq!(follows(&two.look(Some(&lease), at(second)), "one"), expected, "{second}");
        }
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        let (mut one, mut two) = (Election::new("one".into()), Election::new("two".into()));
        let lease = stored(claimed(one.look(None, at(0))), "1");
        assert!(follows(&two.look(Some(&lease), at(0)), "one"));
        let free = stored(released(&lease), "2");
        assert_eq!(of(&claimed(two.look(Some(&free), at(1)))), (Some("two"), Some(1)));
    }

    #[test]
    fn a_lease_that_is_deleted_goes_to_nobody_else_before_its_holder_had_time_to_notice() {
        let (mut one, mut two) = (Election::new("one".into()), Election::new("two".into()));
        let lease = stored(claimed(one.look(None, at(0))), "1");
        assert!(follows(&two.look(Some(&lease), at(0)), "one"));
        assert!(follows(&two.look(None, at(14)), "one"));
        let again = stored(claimed(one.look(None, at(15))), "7");
        assert!(follows(&two.look(Some(&again), at(16)), "one"));
        assert!(follows(&two.look(None, at(20)), "one"));
        assert_eq!(of(&claimed(two.look(None, at(35)))).0, Some("two"));
    }

    #[test]
    fn what_others_write_beside_the_spec_does_not_prolong_a_term() {
        let (mut one, mut two) = (Election::new("one".into()), Election::new("two".into()));
        let lease = stored(claimed(one.look(None, at(0))), "1");
        assert!(follows(&two.look(Some(&lease), at(0)), "one"));
        assert!(follows(&two.look(Some(&stored(lease.clone(), "2")), at(14)), "one"));
        assert_eq!(of(&claimed(two.look(Some(&stored(lease, "3")), at(15)))).0, Some("two"));
    }

    #[test]
    fn the_times_leave_room_for_three_tries_and_for_the_last_write() {
        assert_eq!(TERM, Duration::from_secs(TERM_SECONDS.unsigned_abs().into()));
        assert!(RENEWED_EVERY * 3 < WRITES_WITHIN && WRITES_WITHIN + Duration::from_secs(5) <= TERM);
    }
}
