//! What the requests are about: which keys, which values, and which of the keys were written.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::tally::Kind;
use super::zipf::Zipf;
use crate::args::{BenchArgs, Distribution};

/// Values begin anywhere in so many bytes more than the largest one has: hardly two are alike.
const SPARE_BYTES: usize = 64 << 10;

pub(super) struct Load {
    pub args: BenchArgs,
    /// Of more than uniform popularity.
    zipf: Option<Zipf>,
    /// Random, so that nothing can be gained by compressing it.
    random_bytes: Bytes,
    written: Option<KeySet>,
}

impl Load {
    pub(super) fn new(args: &BenchArgs) -> Self {
        let mut random_bytes = vec![0; *args.value_bytes.end() as usize + SPARE_BYTES];
        SmallRng::from_os_rng().fill_bytes(&mut random_bytes);
        let zipf = match args.distribution {
            Distribution::Uniform => None,
            Distribution::Zipf => Some(Zipf::new(args.keys)),
        };
        Self {
            zipf,
            random_bytes: random_bytes.into(),
            written: args.cleanup.then(|| KeySet::new(args.keys)),
            args: args.clone(),
        }
    }

    pub(super) fn name(&self, key: u32) -> String {
        format!("{}{key:010}", self.args.prefix)
    }

    pub(super) fn draw_key(&self, random: &mut SmallRng) -> u32 {
        match &self.zipf {
            Some(zipf) => zipf.draw(random),
            None => random.random_range(0..self.args.keys),
        }
    }

    /// The key that is asked for most often, if there is one.
    pub(super) fn hottest(&self) -> Option<u32> {
        self.zipf.as_ref().map(|_| 0)
    }

    pub(super) fn draw_kind(&self, random: &mut SmallRng) -> Kind {
        if random.random_bool(self.args.read_share) { Kind::Get } else { Kind::Put }
    }

    pub(super) fn draw_value(&self, random: &mut SmallRng) -> Bytes {
        let bytes = random.random_range(self.args.value_bytes.clone()) as usize;
        let begin = random.random_range(0..SPARE_BYTES);
        self.random_bytes.slice(begin..begin + bytes)
    }

    /// To be noted before a write is sent: whatever becomes of it, the key may be there then.
    pub(super) fn note_written(&self, key: u32) {
        if let Some(written) = &self.written {
            written.insert(key);
        }
    }

    /// None if they are to stay.
    pub(super) fn written(&self) -> Option<&KeySet> {
        self.written.as_ref()
    }
}

/// A bit for each key.
pub(super) struct KeySet(Vec<AtomicU64>);

impl KeySet {
    fn new(keys: u32) -> Self {
        Self((0..keys.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn insert(&self, key: u32) {
        if let Some(word) = self.0.get(key as usize / 64) {
            word.fetch_or(1 << (key % 64), Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// The first one that is not below `from`.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let words = self.0.iter().enumerate().skip(from as usize / 64);
        let mut below = (1 << (from % 64)) - 1;
        for (index, word) in words {
            let bits: u64 = word.load(Ordering::Relaxed) & !std::mem::take(&mut below);
            if bits != 0 {
                return Some(index as u32 * 64 + bits.trailing_zeros());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    fn load(arguments: &[&str]) -> Load {
        let arguments = [&["keystorectl", "bench"], arguments].concat();
        match Arguments::try_parse_from(arguments).unwrap().command {
            Command::Bench(args) => Load::new(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_have_every_size_that_was_asked_for_and_are_not_alike() {
        let (load, mut random) = (load(&["--value-bytes", "7-9"]), SmallRng::seed_from_u64(1));
        let values: Vec<_> = (0..1000).map(|_| load.draw_value(&mut random)).collect();
        for size in 7..=9 {
            assert!(values.iter().filter(|value| value.len() == size).count() > 200, "{size}");
        }
        assert!(values.iter().all(|value| (7..=9).contains(&value.len())));
        assert!(values.windows(2).filter(|pair| pair[0] == pair[1]).count() < 10);
    }

    #[test]
    fn keys_are_numbered_behind_their_prefix() {
        assert_eq!(load(&[]).name(7), "bench/0000000007");
        assert_eq!(load(&["--prefix", ""]).name(u32::MAX), "4294967295");
    }

    #[test]
    fn written_keys_are_found_again() {
        let load = load(&["--keys", "1000", "--cleanup"]);
        let written = load.written().unwrap();
        assert_eq!((written.len(), written.next(0)), (0, None));
        for key in [0, 63, 64, 500, 999, 500] {
            load.note_written(key);
        }
        assert_eq!(written.len(), 5);
        let mut found: Vec<u32> = Vec::new();
        while let Some(key) = written.next(found.last().map_or(0, |last| last + 1)) {
            found.push(key);
        }
        assert_eq!(found, [0, 63, 64, 500, 999]);
    }

    #[test]
    fn only_a_distribution_that_is_not_uniform_has_a_hottest_key() {
        assert_eq!(load(&[]).hottest(), None);
        let (zipf, mut random) = (load(&["--distribution", "zipf"]), SmallRng::seed_from_u64(1));
        let hottest = zipf.hottest().unwrap();
        let drawn: Vec<_> = (0..10_000).map(|_| zipf.draw_key(&mut random)).collect();
        let count = |key: u32| drawn.iter().filter(|drawn| **drawn == key).count();
        assert!((1..10).all(|other| count(hottest) > count(other)));
    }
}
