//! A memtable and what lies below it: what is applied is in memory at once, and on disk by the next flush, in order
//! and only once however often it was written.
//!
//! The commit log in front makes that safe: a flush is what a checkpoint waits for, and whatever no checkpoint covers
//! is replayed. A table that is being written down stays visible until the base has all of it, so a reader finds a
//! record in one of the tables or in the base, never older than before.
//!
//! Whoever commits a record has merged it with what is stored, so it takes the place of that unseen. Only what is
//! replayed may be below what the base holds, and is merged with it when it is read or written down: looking there
//! for each would cost what is to be saved. Where the base's record is damaged, the one from above takes its place.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::mem;
use std::ops::Range;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use bytes::Bytes;
use keystore_core::effect::{Damaged, Entry, Hint};
use keystore_core::message::{PAGE_BYTES_MAX, Page, ScanRange};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;

use super::base::{Base, IsCovered};
use super::data_dir::DataDir;
use super::engine::{EngineError, EngineSize, LoadError, ScanError, Storage};
use super::item::{self, PageMaker};
use super::memtable::{self, Held, Memtable};

/// How many records that are removed and not written down yet a page passes over: the base steps over each of them.
const REMOVED_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct BufferedEngine {
    base: Box<dyn Base>,
    /// Given up after the base, which is above.
    _locked: Option<Arc<DataDir>>,
    tables: RwLock<Tables>,
    /// Held by whoever writes a table down.
    turn: Mutex<()>,
    /// Of memory; see [`BufferedEngine::make_room`].
    table_bytes: usize,
}

#[derive(Debug, Default)]
struct Tables {
    active: Memtable,
    /// Being written down.
    draining: Option<Arc<Memtable>>,
    /// Keys for which the base has no place any more.
    unreadable: BTreeSet<RecordKey>,
}

impl Tables {
    fn draining(&self) -> Option<&Memtable> {
        self.draining.as_deref()
    }

    fn get(&self, key: &RecordKey) -> Option<&Held> {
        self.active.get(key).or_else(|| self.draining()?.get(key))
    }

    fn bytes(&self) -> usize {
        self.active.bytes() + self.draining().map_or(0, Memtable::bytes)
    }
}

impl BufferedEngine {
    /// Takes up to four times `table_bytes` of memory, beside what the base needs.
    pub(super) fn new(base: Box<dyn Base>, table_bytes: u64) -> Self {
        Self {
            base,
            _locked: None,
            tables: RwLock::default(),
            turn: Mutex::default(),
            table_bytes: usize::try_from(table_bytes).unwrap_or(usize::MAX / 4),
        }
    }

    /// Keeps the directory's lock until nothing writes there any more.
    pub(super) fn in_locked(self, directory: Arc<DataDir>) -> Self {
        Self { _locked: Some(directory), ..self }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes come as the log grows and keep the tables at their size. Where they do not keep up, whoever applies
    /// waits for them; where there are none, as during a replay, it writes the table down itself.
    fn make_room(&self) -> Result<(), EngineError> {
        let bytes = self.read().active.bytes();
        if bytes < 2 * self.table_bytes {
            return Ok(());
        }
        match self.turn.try_lock() {
            Ok(turn) if bytes >= 3 * self.table_bytes => self.drain(&turn, None),
            Ok(_) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
                Ok(())
            }
            Err(TryLockError::Poisoned(turn)) => self.drain(&turn.into_inner(), None),
        }
    }

    /// Takes entries in order, records as `put` does it.
    fn take(
        &self,
        entries: &[Entry],
        put: impl Fn(&mut Tables, &RecordKey, &Record),
    ) -> Result<Vec<usize>, EngineError> {
        self.make_room()?;
        let mut damaged = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            // For each anew: readers come in between.
            let mut tables = self.write();
            match entry {
                Entry::Record { key, .. } | Entry::Replace { key, .. } if tables.unreadable.contains(key) => {
                    damaged.push(at);
                }
                Entry::Record { key, record } => put(&mut tables, key, record),
                Entry::Replace { key, record } => tables.active.replace(key, record.as_ref()),
                Entry::Hint(Hint { target, key, since_ms }) => {
                    tables.active.keep_hint(*target, key, Some(*since_ms));
                }
                Entry::HintDone { target, key } => tables.active.keep_hint(*target, key, None),
            }
        }
        Ok(damaged)
    }

    /// Writes everything down that was applied before this call.
    fn drain(&self, _turn: &MutexGuard<'_, ()>, sequence: Option<u64>) -> Result<(), EngineError> {
        // One that is left is of a drain that has failed.
        let left = self.read().draining.clone();
        if let Some(left) = left {
            self.write_down(&left, None)?;
        }
        let table = {
            let mut tables = self.write();
            let table = Arc::new(mem::take(&mut tables.active));
            tables.draining = Some(table.clone());
            table
        };
        self.write_down(&table, sequence)
    }

    fn write_down(&self, table: &Memtable, sequence: Option<u64>) -> Result<(), EngineError> {
        let unreadable = self.base.write_down(table, sequence)?;
        if !unreadable.is_empty() {
            // As with any other damage below: the keys come into doubt as soon as somebody asks for them.
            tracing::error!(records = unreadable.len(), "records were lost to pages that cannot be read");
        }
        let mut tables = self.write();
        tables.unreadable.extend(unreadable);
        tables.draining = None;
        Ok(())
    }

    /// What the tables hold of a stretch, or of its beginning: at least as many records as one page can have, or so many
    /// that are removed that to look below at each of them takes a while.
    fn held(&self, names: &Range<Vec<u8>>, limit: usize) -> HeldStretch {
        let tables = self.read();
        let mut found: Vec<(Place, Held)> = Vec::new();
        let mut known_to: Option<Place> = None;
        for table in [&tables.active].into_iter().chain(tables.draining()) {
            let (mut records, mut removed, mut bytes) = (0, 0, 0);
            for (key, held) in table.between(names) {
                let count = if held.record.is_some() { &mut records } else { &mut removed };
                *count += 1;
                bytes += held.record.as_ref().map_or(0, Bytes::len);
                let place = (key.slot(), key);
                let is_enough = records > limit || removed > REMOVED_MAX || bytes > PAGE_BYTES_MAX;
                if is_enough {
                    known_to = Some(known_to.map_or(place.clone(), |known| known.min(place.clone())));
                }
                found.push((place, held.clone()));
                if is_enough {
                    break;
                }
            }
        }
        // Each table is in order, so this only merges; of two that are equal the first one stays, which is newer.
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.dedup_by(|(later, _), (earlier, _)| later == earlier);
        if let Some(known) = &known_to {
            found.truncate(found.partition_point(|(place, _)| place <= known));
        }
        HeldStretch { found, known_to }
    }

    /// Takes what a stretch has into the page, as far as the tables' part of it is known: what lies below may go on
    /// behind the last of what is held.
    fn fill(
        &self,
        page: &mut PageMaker,
        names: &Range<Vec<u8>>,
        stretch: &HeldStretch,
    ) -> Result<Filled, ScanError> {
        let end = stretch.known_to.as_ref().map(|(_, key)| item::name_after(key));
        let names = names.start.clone()..end.unwrap_or_else(|| names.end.clone());
        let mut held = stretch.records();
        let mut stored = self.base.records(&names, stretch.is_covered());
        let (mut next_held, mut next_stored) = (held.next(), stored.next());
        loop {
            let order = match (&next_held, &next_stored) {
                (None, None) => return Ok(Filled::Part),
                // What cannot be read is for the next page, unless this one would be empty.
                (_, Some(Err(_))) if !page.is_empty() => {
                    page.cut();
                    return Ok(Filled::Full);
                }
                (_, Some(Err(_))) => {
                    return next_stored.map_or(Ok(Filled::Part), |stored| stored.map(|_| Filled::Part));
                }
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some((held, _)), Some(Ok((stored, _)))) => Ord::cmp(*held, stored),
            };
            if page.is_cut_before_next() {
                return Ok(Filled::Full);
            }
            let from_held = if order.is_le() { mem::replace(&mut next_held, held.next()) } else { None };
            let from_stored = match order.is_ge() {
                true => mem::replace(&mut next_stored, stored.next()).transpose()?,
                false => None,
            };
            let (held, stored) = (from_held.unzip(), from_stored.unzip());
            let Some((_, key)) = held.0.cloned().or(stored.0) else { return Ok(Filled::Part) };
            let found = merged(&key, held.1, stored.1).map_err(|Damaged| ScanError::Damaged(key.clone()))?;
            if let Some(record) = found
                && !page.take(key, record)
            {
                return Ok(Filled::Full);
            }
        }
    }
}

/// How far a page has come.
#[derive(PartialEq, Eq)]
enum Filled {
    /// It takes no more.
    Full,
    /// It has all of the stretch that is known.
    Part,
}

/// Where a record lies among all.
type Place = (u16, RecordKey);

/// What the tables hold of a stretch of names, or of its beginning.
struct HeldStretch {
    /// In order, each key once.
    found: Vec<(Place, Held)>,
    /// Beyond, nobody has looked; `None`: this is all.
    known_to: Option<Place>,
}

impl HeldStretch {
    fn records(&self) -> impl Iterator<Item = (&Place, &Held)> {
        self.found.iter().filter(|(_, held)| held.record.is_some()).map(|(place, held)| (place, held))
    }

    /// Of names that come in order: whether what is held takes the place of whatever lies below. Where much was removed
    /// and is not written down yet, that is nearly all.
    fn is_covered(&self) -> IsCovered<'_> {
        let mut whole = self.found.iter().filter(|(_, held)| held.is_whole).peekable();
        Box::new(move |name| {
            let order = |(slot, key): &Place| item::compare_name(*slot, key, name);
            while whole.next_if(|(place, _)| order(place).is_lt()).is_some() {}
            whole.peek().is_some_and(|(place, _)| order(place).is_eq())
        })
    }
}

/// What a key holds, given what a table and what the base say of it.
fn merged(
    key: &RecordKey,
    held: Option<&Held>,
    stored: Option<Result<Option<Record>, Damaged>>,
) -> Result<Option<Record>, Damaged> {
    let Some(held) = held else { return stored.unwrap_or(Ok(None)) };
    let record = held.decode(key)?;
    Ok(match (record, stored) {
        (Some(record), Some(Ok(Some(below)))) if !held.is_whole => Some(below.merge(record)),
        (record, _) => record,
    })
}

impl Storage for BufferedEngine {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError> {
        let held = self.read().get(key).cloned();
        let stored = match &held {
            Some(held) if held.is_whole => None,
            Some(_) | None => match self.base.load(key) {
                Ok(stored) => Some(Ok(stored)),
                Err(LoadError::Damaged) => Some(Err(Damaged)),
                Err(error @ LoadError::Io(_)) => return Err(error),
            },
        };
        merged(key, held.as_ref(), stored).map_err(|Damaged| LoadError::Damaged)
    }

    fn scan(&self, slots: Range<u32>, range: &ScanRange) -> Result<Page, ScanError> {
        let mut page = PageMaker::new(range);
        for names in item::stretches(slots, range) {
            // Before the base is looked at: what leaves the tables meanwhile is found in both, never in none.
            let stretch = self.held(&names, page.limit());
            if self.fill(&mut page, &names, &stretch)? == Filled::Full {
                return Ok(page.finish());
            }
            if let Some((_, key)) = stretch.known_to {
                return Ok(page.finish_at(key));
            }
        }
        Ok(page.finish())
    }

    fn hints(&self) -> Result<Vec<Hint>, EngineError> {
        let tables = self.read();
        let mut hints = self.base.hints()?;
        for table in tables.draining().into_iter().chain([&tables.active]) {
            for (name, since_ms) in table.hints() {
                hints.remove(name);
                hints.extend(
                    since_ms.and_then(|since_ms| Some((name.clone(), memtable::hint(name, since_ms)?))),
                );
            }
        }
        Ok(hints.into_values().collect())
    }

    fn replay(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError> {
        self.take(entries, |Tables { active, draining, .. }, key, record| {
            let below = draining.as_deref().and_then(|table| table.get(key));
            active.merge(key, record, below);
        })
    }

    fn apply(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError> {
        self.take(entries, |Tables { active, .. }, key, record| active.replace(key, Some(record)))
    }

    fn flush(&self, sequence: u64) -> Result<(), EngineError> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.drain(&turn, Some(sequence))
    }

    fn flushed(&self) -> Result<u64, EngineError> {
        self.base.flushed()
    }

    fn highest(&self) -> Result<Option<Stamp>, EngineError> {
        let tables = self.read();
        let held = tables.draining().map_or(Stamp::LOWEST, Memtable::highest).max(tables.active.highest());
        Ok(self.base.highest()?.map(|noted| noted.max(held)))
    }

    fn flush_bytes(&self) -> u64 {
        0
    }

    fn reserve_bytes(&self) -> u64 {
        0
    }

    fn unwritten_bytes(&self) -> u64 {
        self.read().bytes() as u64 * self.base.written_for_each_byte()
    }

    fn wants_flush(&self) -> bool {
        self.read().active.bytes() >= self.table_bytes
    }

    fn size(&self) -> Result<EngineSize, EngineError> {
        Ok(EngineSize { disk_bytes: self.base.disk_bytes()?, memory_bytes: 0 })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keystore_core::partition::{Partition, PartitionCount};
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::base::{Found, Written, written};
    use super::super::tests::{entry, key, put, record};
    use super::*;

    /// A base in memory.
    #[derive(Debug, Default)]
    struct Plain(Mutex<BTreeMap<Place, Record>>);

    impl Base for Plain {
        fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError> {
            Ok(self.0.lock().unwrap().get(&(key.slot(), key.clone())).cloned())
        }

        fn records<'a>(
            &'a self,
            names: &Range<Vec<u8>>,
            mut is_covered: IsCovered<'a>,
        ) -> Box<dyn Iterator<Item = Result<Found, ScanError>> + 'a> {
            let names = names.clone();
            let all = self.0.lock().unwrap().clone();
            let within = all.into_iter().filter(move |((_, key), _)| {
                let name = item::record_name(key);
                names.contains(&name) && !is_covered(&name)
            });
            Box::new(within.map(|(place, record)| Ok((place, Ok(Some(record))))))
        }

        fn hints(&self) -> Result<BTreeMap<Vec<u8>, Hint>, EngineError> {
            Ok(BTreeMap::new())
        }

        fn write_down(&self, table: &Memtable, _: Option<u64>) -> Result<Vec<RecordKey>, EngineError> {
            let mut all = self.0.lock().unwrap();
            for (key, held) in table.records() {
                let place = (key.slot(), key.clone());
                match written(&key, held, all.get(&place).cloned())? {
                    Written::Same => {}
                    Written::Nothing => drop(all.remove(&place)),
                    Written::Record(record, _) => drop(all.insert(place, record)),
                }
            }
            Ok(Vec::new())
        }

        fn flushed(&self) -> Result<u64, EngineError> {
            Ok(0)
        }

        fn highest(&self) -> Result<Option<Stamp>, EngineError> {
            Ok(self.0.lock().unwrap().values().map(|record| record.stamp).max())
        }

        fn disk_bytes(&self) -> Result<u64, EngineError> {
            Ok(0)
        }

        fn written_for_each_byte(&self) -> u64 {
            1
        }
    }

    /// What was applied so far is being written down, and never comes to its end by itself.
    fn drain_for_ever(engine: &BufferedEngine) {
        let mut tables = engine.write();
        tables.draining = Some(Arc::new(mem::take(&mut tables.active)));
    }

    fn engine() -> BufferedEngine {
        BufferedEngine::new(Box::new(Plain::default()), 1 << 20)
    }

    #[test]
    fn what_is_replayed_is_merged_with_what_is_being_written_down() {
        let engine = engine();
        engine.replay(&put([entry(1, 9), entry(2, 9), entry(3, 9)])).unwrap();
        drain_for_ever(&engine);
        engine.replay(&put([entry(1, 5), entry(2, 10)])).unwrap();
        let replaced = Entry::Replace { key: key(3), record: Some(entry(3, 4).1) };
        engine.replay(&[replaced, Entry::Record { key: key(3), record: entry(3, 6).1 }]).unwrap();
        let expected = [(1, 9), (2, 10), (3, 6)];
        // The table of a flush that has failed is written down before the next one.
        for _ in 0..2 {
            for (n, millis) in expected {
                assert_eq!(engine.load(&key(n)).unwrap(), Some(entry(n, millis).1));
            }
            engine.flush(1).unwrap();
        }
        engine.replay(&put([entry(3, 5)])).unwrap();
        assert_eq!(engine.load(&key(3)).unwrap(), Some(entry(3, 6).1));
    }

    #[test]
    fn what_is_committed_takes_the_place_of_what_is_below_unseen() {
        let engine = engine();
        engine.apply(&put([entry(1, 1), entry(2, 1)])).unwrap();
        engine.flush(1).unwrap();
        engine.apply(&put([entry(1, 2), entry(2, 2)])).unwrap();
        drain_for_ever(&engine);
        engine.apply(&put([entry(2, 3)])).unwrap();
        let is_whole = |key: &RecordKey| engine.read().get(key).is_some_and(|held| held.is_whole);
        for (n, millis) in [(1, 2), (2, 3)] {
            assert!(is_whole(&key(n)), "nobody reads the base");
            assert_eq!(engine.load(&key(n)).unwrap(), Some(entry(n, millis).1));
        }
        engine.flush(2).unwrap();
        assert_eq!(engine.load(&key(1)).unwrap(), Some(entry(1, 2).1));
        assert_eq!(engine.load(&key(2)).unwrap(), Some(entry(2, 3).1));
        // What a log still has of before.
        engine.replay(&put([entry(1, 1)])).unwrap();
        engine.flush(3).unwrap();
        assert_eq!(engine.load(&key(1)).unwrap(), Some(entry(1, 2).1));
    }

    #[test]
    fn pages_go_on_behind_what_is_removed_above_what_is_being_written_down() {
        let count = PartitionCount::new(16).unwrap();
        let mut keys: Vec<_> = (0..16 * 600).map(key).filter(|key| key.partition(count).0 == 3).collect();
        keys.sort_by_key(|key| (key.slot(), key.clone()));
        // Behind all that is removed, before it, and in the midst of it.
        let left: [fn(usize, usize) -> bool; 3] =
            [|at, all| at + 3 >= all, |at, _| at < 3, |at, _| at % 100 == 50];
        for (is_flushed, is_left) in
            [false, true].into_iter().flat_map(|flushed| left.map(|left| (flushed, left)))
        {
            let engine = engine();
            engine.apply(&put(keys.iter().map(|key| (key.clone(), record(1, "v"))))).unwrap();
            match is_flushed {
                true => engine.flush(1).unwrap(),
                false => drain_for_ever(&engine),
            }
            let (left, removed): (Vec<_>, Vec<_>) =
                (0..).zip(keys.clone()).partition(|(at, _)| is_left(*at, keys.len()));
            let [left, removed] =
                [left, removed].map(|of| of.into_iter().map(|(_, key)| key).collect::<Vec<_>>());
            let gone = removed.iter().map(|key| Entry::Replace { key: key.clone(), record: None });
            engine.apply(&gone.collect::<Vec<_>>()).unwrap();
            for limit in [1, 2, 5] {
                let mut range =
                    ScanRange { partition: Partition(3), prefix: Bytes::new(), after: None, limit };
                let (mut found, mut pages) = (Vec::new(), 0);
                loop {
                    let page = engine.scan(count.slots(Partition(3)), &range).unwrap();
                    found.extend(page.entries.into_iter().map(|(key, _)| key));
                    pages += 1;
                    let Some(behind) = page.until else { break };
                    let passed = removed.iter().filter(|key| key.place() <= behind.place());
                    assert!(
                        passed.count() <= pages * (REMOVED_MAX + 1),
                        "a page passes over so many at most"
                    );
                    range.after = Some(behind);
                }
                assert_eq!(found, left, "flushed: {is_flushed}, limit {limit}");
                assert!(pages > removed.len() / (REMOVED_MAX + 1), "{pages} pages");
            }
        }
    }

    /// Whatever lies in which table or below, and however much of it was removed.
    #[test]
    fn pages_show_what_is_there_and_nothing_else() {
        let count = PartitionCount::new(16).unwrap();
        let mut keys: Vec<_> = (0..16 * 900).map(key).filter(|key| key.partition(count).0 == 3).collect();
        keys.sort_by_key(|key| (key.slot(), key.clone()));
        let mut random = SmallRng::seed_from_u64(7);
        for round in 0..60 {
            let (engine, mut expected) = (engine(), BTreeMap::new());
            for _ in 0..random.random_range(1..8) {
                match random.random_range(0..6) {
                    0 => engine.flush(1).unwrap(),
                    // One that is left is written down by the next flush; until then there is no other.
                    1 if engine.read().draining.is_none() => drain_for_ever(&engine),
                    _ => {
                        let from = random.random_range(0..keys.len());
                        let some = keys.iter().skip(from).take(random.random_range(1..keys.len()));
                        let (puts, every) = (random.random_bool(0.4), random.random_range(1..4));
                        let entries: Vec<_> = some
                            .step_by(every)
                            .map(|key| {
                                let record = puts.then(|| record(round + 1, "v"));
                                let place = (key.slot(), key.clone());
                                match &record {
                                    Some(record) => {
                                        expected.insert(place, record.clone());
                                    }
                                    None => {
                                        expected.remove(&place);
                                    }
                                }
                                Entry::Replace { key: key.clone(), record }
                            })
                            .collect();
                        engine.apply(&entries).unwrap();
                    }
                }
            }
            let limit = random.random_range(1..300);
            let mut range = ScanRange { partition: Partition(3), prefix: Bytes::new(), after: None, limit };
            let mut found = Vec::new();
            loop {
                let page = engine.scan(count.slots(Partition(3)), &range).unwrap();
                assert!(page.entries.len() <= limit as usize);
                found.extend(page.entries.into_iter().map(|(key, record)| ((key.slot(), key), record)));
                match page.until {
                    None => break,
                    behind => range.after = behind,
                }
            }
            assert!(found == expected.into_iter().collect::<Vec<_>>(), "round {round}");
        }
    }

    #[test]
    fn what_is_not_written_down_yet_asks_for_a_flush_and_counts_until_then() {
        let engine = engine();
        assert!(!engine.wants_flush() && engine.unwritten_bytes() == 0);
        engine.apply(&put((0..40).map(|n| (key(n), record(1, vec![1; 30_000]))))).unwrap();
        assert!(engine.wants_flush() && engine.unwritten_bytes() > 1_200_000);
        engine.flush(1).unwrap();
        assert!(!engine.wants_flush() && engine.unwritten_bytes() == 0);
    }
}
