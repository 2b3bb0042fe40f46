//! Feeds a target with mutations of its corpus, keeps what has a new signature, and says which input broke it.

use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::mutate::mutate;
use crate::targets::{Signature, Target};

/// How many inputs with signatures of their own are kept in memory.
const KEPT_MAX: usize = 4096;

/// An input on which a target panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub input: Vec<u8>,
    pub message: String,
}

/// One target, its inputs so far and the source of the next ones: the same seed gives the same inputs.
#[derive(Debug)]
pub struct Run {
    target: Target,
    inputs: Vec<Vec<u8>>,
    signatures: BTreeSet<Signature>,
    random: SmallRng,
}

impl Run {
    /// Replays the corpus first: an input of it that breaks the target is the first result.
    pub fn new(target: Target, corpus: Vec<Vec<u8>>, seed: u64) -> Result<Self, Broken> {
        let random = SmallRng::seed_from_u64(seed);
        let mut run = Self { target, inputs: vec![Vec::new()], signatures: BTreeSet::new(), random };
        for input in corpus {
            run.feed(&input)?;
            run.inputs.push(input);
        }
        Ok(run)
    }

    /// How many shapes of results were seen.
    pub fn signatures(&self) -> usize {
        self.signatures.len()
    }

    /// Feeds one more input.
    pub fn step(&mut self) -> Result<(), Broken> {
        let [from, other] = [0; 2].map(|_| self.random.random_range(0..self.inputs.len()));
        let mut input = self.inputs.get(from).cloned().unwrap_or_default();
        let other = self.inputs.get(other).map_or(&[][..], Vec::as_slice);
        mutate(&mut input, other, &mut self.random);
        if self.feed(&input)? && self.inputs.len() < KEPT_MAX {
            self.inputs.push(input);
        }
        Ok(())
    }

    /// True if the result has a shape that was not seen before.
    fn feed(&mut self, input: &[u8]) -> Result<bool, Broken> {
        let run = self.target.run;
        match panic::catch_unwind(AssertUnwindSafe(|| run(input))) {
            Ok(signature) => Ok(self.signatures.insert(signature)),
            Err(payload) => Err(Broken { input: input.to_vec(), message: message_of(&payload) }),
        }
    }
}

fn message_of(payload: &Box<dyn std::any::Any + Send>) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}
