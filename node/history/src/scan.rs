//! Scans, which are reads of every key in their range.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeBounds};

use crate::History;
use crate::operation::{Action, Key, Operation, ReadOutcome, Seen};
use crate::promise::{Promise, Violation};

/// The keys that a scan answered for: what it left out has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub from: Bound<Vec<u8>>,
    pub to: Bound<Vec<u8>>,
}

impl KeyRange {
    pub const ALL: Self = Self { from: Bound::Unbounded, to: Bound::Unbounded };

    /// Every key that begins with these bytes.
    pub fn prefix(prefix: &[u8]) -> Self {
        // The first key after all of them: the prefix without its trailing 0xff bytes, and its last byte one higher.
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        let to = match end.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(end)
            }
            None => Bound::Unbounded,
        };
        Self { from: Bound::Included(prefix.to_vec()), to }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        let bounds = (self.from.as_ref().map(Vec::as_slice), self.to.as_ref().map(Vec::as_slice));
        RangeBounds::<[u8]>::contains(&bounds, key)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanOutcome {
    /// Keys with their values, to the end of the range.
    Found(Vec<(Vec<u8>, Vec<Seen>)>),
    Unanswered(String),
}

/// One scan. One that was cut or broke off is written down as reads of the keys that it returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    pub session: u32,
    pub keyspace: String,
    pub range: KeyRange,
    pub asked_at: u64,
    pub answered_at: u64,
    pub deadline: Option<u64>,
    pub is_promised: bool,
    pub outcome: ScanOutcome,
}

impl Scan {
    fn get(&self, key: &[u8], outcome: ReadOutcome) -> Operation {
        let key = Key::new(&self.keyspace, key);
        let times = (self.asked_at, self.answered_at);
        Operation {
            deadline: self.deadline,
            is_promised: self.is_promised,
            ..Operation::new(self.session, key, times, Action::Get(outcome))
        }
    }
}

/// What the scans say about each key that was ever asked for or found: a key that a scan passed by is missing.
pub(crate) fn observations(history: &History) -> Vec<Operation> {
    let mut asked: BTreeMap<&str, BTreeSet<&[u8]>> = BTreeMap::new();
    for Operation { key, .. } in &history.operations {
        asked.entry(&key.keyspace).or_default().insert(&key.key);
    }
    let mut observations = Vec::new();
    for scan in &history.scans {
        let ScanOutcome::Found(found) = &scan.outcome else { continue };
        let mut passed_by = asked.get(scan.keyspace.as_str()).cloned().unwrap_or_default();
        for (key, values) in found {
            passed_by.remove(key.as_slice());
            observations.push(scan.get(key, ReadOutcome::Found(values.clone())));
        }
        let missing = passed_by.into_iter().filter(|key| scan.range.contains(key));
        observations.extend(missing.map(|key| scan.get(key, ReadOutcome::Missing)));
    }
    observations
}

pub(crate) fn check_keys(scans: &[Scan]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for scan in scans {
        let ScanOutcome::Found(found) = &scan.outcome else { continue };
        let mut before = BTreeSet::new();
        for (key, values) in found {
            if !before.insert(key) || !scan.range.contains(key) {
                let found = scan.get(key, ReadOutcome::Found(values.clone()));
                violations.push(Violation::new(Promise::ScansFindKeysOnce, None, &found));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{put, seen};
    use crate::{Rules, check};

    /// A scan of "default" after both puts, "k" = "a" at 1 and "l" = "b" at 2.
    #[track_caller]
    fn check_scan(range: KeyRange, found: &[(&str, &str, u8)], expected: &[Promise]) {
        let mut second = put((0, 1), "b", 2);
        second.key = Key::new("default", b"l");
        let found = found.iter().map(|(key, value, at)| (key.as_bytes().to_vec(), vec![seen(value, *at)]));
        let scan = Scan {
            session: 9,
            keyspace: "default".into(),
            range,
            asked_at: 2,
            answered_at: 3,
            deadline: None,
            is_promised: true,
            outcome: ScanOutcome::Found(found.collect()),
        };
        let history = History { operations: vec![put((0, 1), "a", 1), second], scans: vec![scan] };
        let broken: Vec<_> =
            check(&history, &Rules::default()).iter().map(|violation| violation.promise).collect();
        assert_eq!(broken, expected);
    }

    #[test]
    fn a_scan_is_a_read_of_every_key_in_its_range() {
        check_scan(KeyRange::ALL, &[("k", "a", 1), ("l", "b", 2)], &[]);
        check_scan(KeyRange::prefix(b"k"), &[("k", "a", 1)], &[]);
        check_scan(KeyRange::prefix(b"x"), &[], &[]);
        check_scan(KeyRange::ALL, &[("k", "a", 1)], &[Promise::AcknowledgedIsReadable]);
        let page = KeyRange { from: Bound::Unbounded, to: Bound::Included(b"k".to_vec()) };
        check_scan(page.clone(), &[("k", "a", 1)], &[]);
        check_scan(page, &[("k", "a", 1), ("l", "b", 2)], &[Promise::ScansFindKeysOnce]);
        // In whatever order the store keeps them.
        check_scan(KeyRange::ALL, &[("l", "b", 2), ("k", "a", 1)], &[]);
        let twice = [("k", "a", 1), ("k", "a", 1), ("l", "b", 2)];
        check_scan(KeyRange::ALL, &twice, &[Promise::ScansFindKeysOnce]);
        let stranger = [("k", "a", 1), ("l", "b", 2), ("m", "c", 3)];
        check_scan(KeyRange::ALL, &stranger, &[Promise::OnlyWrittenIsRead]);
    }

    #[test]
    fn a_prefix_ends_before_the_next() {
        for (prefix, within, beyond) in
            [(&b"a"[..], &b"a\xff"[..], &b"b"[..]), (b"a\xff", b"a\xff\xff", b"b"), (b"ab", b"ab", b"aa")]
        {
            let range = KeyRange::prefix(prefix);
            assert!(range.contains(within) && !range.contains(beyond), "{prefix:?}");
        }
        assert!(KeyRange::prefix(b"\xff").contains(b"\xff\xff"));
        assert!(KeyRange::prefix(b"").contains(b"x"));
    }
}
