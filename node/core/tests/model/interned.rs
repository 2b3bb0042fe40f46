//! Values under small numbers, so that a state of a model is a few bytes, and what the shipped code made of a value and
//! an input is computed once.

use std::collections::BTreeMap;
use std::fmt::Debug;

pub(crate) type Number = u16;

/// Each distinct value once.
#[derive(Debug)]
pub(crate) struct Interned<T> {
    values: Vec<T>,
    numbers: BTreeMap<String, Number>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { values: Vec::new(), numbers: BTreeMap::new() }
    }
}

impl<T: Debug + PartialEq> Interned<T> {
    pub(crate) fn number(&mut self, value: T) -> Number {
        let next = Number::try_from(self.values.len()).expect("a model has fewer values than that");
        let number = *self.numbers.entry(format!("{value:?}")).or_insert(next);
        if number == next {
            self.values.push(value);
        }
        number
    }

    pub(crate) fn get(&self, number: Number) -> &T {
        &self.values[usize::from(number)]
    }
}

/// Adds to a sorted list in which each value is once.
pub(crate) fn add<T: Ord>(set: &mut Vec<T>, value: T) {
    if let Err(at) = set.binary_search(&value) {
        set.insert(at, value);
    }
}
