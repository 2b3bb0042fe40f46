//! What a node holds of a range, said in so few bytes that somebody else can tell what it lacks.
//!
//! First one digest of all records stands for them; only if that is not the same, one of each record. Two records with
//! one digest are one: it is made of key, stamp and content in 128 bits, of which a client chooses but the first and the
//! last. Nothing is said of what lies behind the last key that was looked at, by either side.

use xxhash_rust::xxh3::Xxh3;

use crate::message::Page;
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::record::Record;

/// Stands for one record: its key and its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

/// What somebody holds of a range, which begins where the question does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Up to this key, it included; `None`: to the end of the range.
    pub until: Option<RecordKey>,
    pub digests: Digests,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digests {
    /// Of all records together, in their order.
    All(Digest),
    Each(Vec<Digest>),
}

/// What somebody does not hold of what another one holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    pub entries: Vec<(RecordKey, Record)>,
    /// Up to this key, it included, the two were compared; `None`: to the end of the range.
    pub until: Option<RecordKey>,
}

impl Digest {
    pub fn of(key: &RecordKey, record: &Record) -> Self {
        let version = record.version();
        let mut hasher = Xxh3::new();
        hasher.update(key.encoded());
        if !is_on(Mutant::VersionsAreNotCompared) {
            hasher.update(&version.stamp.to_bytes());
            hasher.update(&version.hash.to_be_bytes());
        }
        Self(hasher.digest128())
    }

    pub fn of_all<'a>(each: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut hasher = Xxh3::new();
        for digest in each {
            hasher.update(&digest.0.to_be_bytes());
        }
        Self(hasher.digest128())
    }
}

impl Held {
    /// What its sender lacks of these records, which begin where its own range did; `None` if they are not the same,
    /// and only a digest of each tells what differs.
    pub fn lacks(&self, page: Page) -> Option<Lacking> {
        let Page { mut entries, until } = page;
        let until = self.compared_until(until.as_ref()).cloned();
        if let Some(until) = &until {
            entries.retain(|(key, _)| key.place() <= until.place());
        }
        match &self.digests {
            Digests::All(held) => {
                let each: Vec<_> = entries.iter().map(|(key, record)| Digest::of(key, record)).collect();
                let is_same = Digest::of_all(&each) == *held || is_on(Mutant::DigestsAreNotCompared);
                is_same.then_some(Lacking { entries: Vec::new(), until })
            }
            Digests::Each(held) => {
                if !is_on(Mutant::AllOfADifferentPageIsSent) {
                    entries.retain(|(key, record)| !held.contains(&Digest::of(key, record)));
                }
                Some(Lacking { entries, until })
            }
        }
    }

    /// Up to where both have looked.
    fn compared_until<'a>(&'a self, theirs: Option<&'a RecordKey>) -> Option<&'a RecordKey> {
        let theirs = theirs.filter(|_| !is_on(Mutant::MoreIsComparedThanWasRead));
        [self.until.as_ref(), theirs].into_iter().flatten().min_by_key(|key| key.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Actor;
    use crate::partition::{Partition, PartitionCount};
    use crate::record::Body;
    use crate::stamp::Stamp;

    /// Keys of one partition in their order, each with a record of its own.
    fn records(count: usize) -> Vec<(RecordKey, Record)> {
        let partitions = PartitionCount::new(16).unwrap();
        let keys = (0..).map(|n: u32| RecordKey::new("default", &n.to_be_bytes()).unwrap());
        let mut keys: Vec<_> =
            keys.filter(|key| key.partition(partitions) == Partition(3)).take(count).collect();
        keys.sort_by(|a, b| a.place().cmp(&b.place()));
        keys.into_iter().map(|key| (key, record(1))).collect()
    }

    fn record(millis: u64) -> Record {
        Record { stamp: Stamp::new(millis, 0, Actor(1)), body: Body::Value("v".into()) }
    }

    fn each(held: &[(RecordKey, Record)]) -> Vec<Digest> {
        held.iter().map(|(key, record)| Digest::of(key, record)).collect()
    }

    /// What is said to somebody with these records, up to there, who says one digest, and who says all.
    fn said(
        held: &[(RecordKey, Record)],
        until: Option<&RecordKey>,
        (page, is_cut): (&[(RecordKey, Record)], bool),
    ) -> [Option<Lacking>; 2] {
        let each = each(held);
        let digests = [Digests::All(Digest::of_all(&each)), Digests::Each(each)];
        let page = if is_cut { Page::cut(page.to_vec()) } else { Page::whole(page.to_vec()) };
        digests.map(|digests| Held { until: until.cloned(), digests }.lacks(page.clone()))
    }

    fn lacking(entries: &[(RecordKey, Record)], until: Option<&RecordKey>) -> Option<Lacking> {
        Some(Lacking { entries: entries.to_vec(), until: until.cloned() })
    }

    #[test]
    fn of_what_is_the_same_nothing_is_sent() {
        let all = records(6);
        let nothing = lacking(&[], None);
        assert_eq!(said(&all, None, (&all[..], false)), [nothing.clone(), nothing]);
    }

    #[test]
    fn only_what_is_lacking_or_another_version_is_sent() {
        let all = records(6);
        let mut held = all.clone();
        held.remove(4);
        held[1].1 = record(7);
        let [of_all, of_each] = said(&held, None, (&all[..], false));
        assert_eq!((of_all, of_each), (None, lacking(&[all[1].clone(), all[4].clone()], None)));
    }

    #[test]
    fn nothing_is_said_behind_what_either_side_has_looked_at() {
        let all = records(6);
        let (third, fourth) = (&all[2].0, &all[3].0);
        let cases = [
            // (held, until, what the other side has read, where the answer ends)
            (&all[..3], Some(third), (&all[..], false), Some(third)),
            (&all[..3], Some(third), (&all[..4], true), Some(third)),
            (&all[..4], Some(fourth), (&all[..3], true), Some(third)),
            (&all[..], None, (&all[..4], true), Some(fourth)),
        ];
        for (held, until, page, end) in cases {
            let [_, of_each] = said(held, until, page);
            assert_eq!(of_each, lacking(&[], end), "{until:?} {page:?}");
        }
    }

    #[test]
    fn what_only_the_asker_holds_does_not_hide_what_it_lacks() {
        let all = records(6);
        let [of_all, of_each] = said(&all[..5], None, (&all[1..], false));
        assert_eq!((of_all, of_each), (None, lacking(&all[5..], None)));
    }
}
