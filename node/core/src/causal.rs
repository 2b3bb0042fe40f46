//! Concurrent writes of one key that are all kept: dotted version vectors.
//!
//! Each write has a *dot*, minted by a replica: an actor and a counter, contiguous for each actor and key. A record
//! is a set of values by their dots, and the context of all dots that it has ever seen. A value is gone exactly if
//! its dot is in the context and the value is not in the set, so merging two records needs nothing else, and is
//! commutative, associative and idempotent. Source: Preguiça et al., "Dotted Version Vectors" (2010), and the causal
//! context of Almeida et al., "Delta State Replicated Data Types" (2016).
//!
//! This holds as long as no replica mints one dot twice: whoever may have lost a record mints as another actor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::layout::REPLICATION_FACTOR_MAX;
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::stamp::Stamp;

/// How many siblings a key may have; a write that would add one more is refused.
pub const SIBLINGS_MAX: usize = 128;

/// How many bytes of values the siblings of a key may have together when one more is written: twice the largest
/// value, so that a read of them stays below the 4 MiB that gRPC clients take unless told otherwise. Replicas that
/// take writes at the same moment count each by itself, see [`RECORD_BYTES_MAX`].
pub const SIBLING_BYTES_MAX: usize = 2 << 20;

/// How many bytes a record may have at most: what every replica of two rings has taken by itself, each up to the cap
/// and with the siblings' headers, in one.
pub const RECORD_BYTES_MAX: usize =
    2 * REPLICATION_FACTOR_MAX * (SIBLING_BYTES_MAX + SIBLINGS_MAX * SIBLING_HEADER_BYTES);

/// How large the context of a record may become by what the token of a write brings along: half of what a request may
/// carry, since replicas that take such writes at the same moment count each by itself.
const CONTEXT_BYTES_MAX: usize = 32 << 10;

/// The highest counter that is read, far above all that writes come to. A token that was made up can say so all the
/// same, see [`Context::next`].
const COUNTER_MAX: u64 = 1 << 62;

/// Who mints dots: a replica, as long as it has lost nothing. See [`crate::id::Actor::minting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DotActor(pub u64);

/// Names one write among all of its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    pub actor: DotActor,
    /// From 1, contiguous for each actor.
    pub counter: u64,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{}", self.actor.0 & 0xffff, self.counter)
    }
}

/// Names a client's write, chosen by the client: siblings that bear one id are one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub [u8; 16]);

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A set of dots: for each actor all up to a counter, and single ones above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    base: BTreeMap<DotActor, u64>,
    single: BTreeSet<Dot>,
}

impl Context {
    pub fn contains(&self, dot: Dot) -> bool {
        self.base.get(&dot.actor).is_some_and(|counter| dot.counter <= *counter) || self.single.contains(&dot)
    }

    pub fn is_empty(&self) -> bool {
        self.base.is_empty() && self.single.is_empty()
    }

    pub fn insert(&mut self, dot: Dot) {
        self.single.insert(dot);
        self.compact();
    }

    pub fn join(&mut self, other: &Self) {
        for (actor, counter) in &other.base {
            let mine = self.base.entry(*actor).or_default();
            *mine = (*mine).max(*counter);
        }
        self.single.extend(&other.single);
        self.compact();
    }

    /// The next dot of an actor whose dots are all in this context. Where a token that was made up has left it none, it
    /// goes on as another actor, which nobody else is either.
    fn next(&self, mut actor: DotActor) -> Dot {
        loop {
            let first = Dot { actor, counter: 0 };
            let last = Dot { actor, counter: u64::MAX };
            let single = self.single.range(first..=last).next_back().map_or(0, |dot| dot.counter);
            let base = self.base.get(&actor).copied().unwrap_or_default();
            let last = base.max(single);
            if last < COUNTER_MAX {
                return Dot { actor, counter: last + 1 };
            }
            actor = DotActor(xxh3_64(&actor.0.to_be_bytes()));
        }
    }

    /// Single dots that follow on the others of their actor become one with them.
    fn compact(&mut self) {
        let single = std::mem::take(&mut self.single);
        for dot in single {
            let base = self.base.get(&dot.actor).copied().unwrap_or_default();
            if dot.counter == base + 1 {
                self.base.insert(dot.actor, dot.counter);
            } else if dot.counter > base {
                self.single.insert(dot);
            }
        }
    }

    /// About how many bytes a token of it has.
    pub fn encoded_len(&self) -> usize {
        4 + 4 + (self.base.len() + self.single.len()) * DOT_BYTES
    }

    fn put(&self, out: &mut impl BufMut) {
        out.put_u32(count(self.base.len()));
        out.put_u32(count(self.single.len()));
        for (actor, counter) in &self.base {
            put_dot(Dot { actor: *actor, counter: *counter }, out);
        }
        for dot in &self.single {
            put_dot(*dot, out);
        }
    }

    fn take(input: &mut Bytes) -> Result<Self, CausalError> {
        let (base, single) = (take_count(input)?, take_count(input)?);
        let mut context = Self::default();
        let mut last = None;
        for _ in 0..base {
            let Dot { actor, counter } = take_dot(input)?;
            if last.replace(actor) >= Some(actor) {
                return Err(CausalError::Order);
            }
            context.base.insert(actor, counter);
        }
        let mut last = None;
        for _ in 0..single {
            let dot = take_dot(input)?;
            // What follows on the others of its actor is one with them: one set has one form.
            let base = context.base.get(&dot.actor).copied().unwrap_or_default();
            if last.replace(dot) >= Some(dot) || dot.counter - 1 <= base {
                return Err(CausalError::Order);
            }
            context.single.insert(dot);
        }
        Ok(context)
    }

    /// The opaque form that clients hold: format, content, and a CRC-32C over the key and both, so that a token
    /// that was given for another key is refused.
    pub fn to_token(&self, key: &RecordKey) -> Bytes {
        let mut out = BytesMut::with_capacity(1 + self.encoded_len() + CHECKSUM_BYTES);
        out.put_u8(TOKEN_FORMAT);
        self.put(&mut out);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(key.encoded()), &out);
        out.put_u32(checksum);
        out.freeze()
    }

    /// Reads what [`Context::to_token`] wrote for this very key.
    pub fn from_token(key: &RecordKey, token: &Bytes) -> Result<Self, CausalError> {
        let content = token.len().checked_sub(CHECKSUM_BYTES).ok_or(CausalError::TooShort)?;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(key.encoded()), &token.slice(..content));
        if token.slice(content..) != checksum.to_be_bytes()[..] {
            return Err(CausalError::Checksum);
        }
        let mut input = token.slice(..content);
        if input.try_get_u8() != Ok(TOKEN_FORMAT) {
            return Err(CausalError::Format);
        }
        let context = Self::take(&mut input)?;
        if input.is_empty() { Ok(context) } else { Err(CausalError::TooLong) }
    }
}

const TOKEN_FORMAT: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
const DOT_BYTES: usize = 8 + 8;
const SIBLING_HEADER_BYTES: usize = DOT_BYTES + 16 + 16 + 8 + 4;

/// Why bytes are no context, or no siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CausalError {
    #[error("it ends too early")]
    TooShort,
    #[error("it has more bytes than belong to it")]
    TooLong,
    #[error("its checksum is wrong: it is damaged, or was given for another key")]
    Checksum,
    #[error("it has a format that this version cannot read")]
    Format,
    #[error("its dots are not in order, or one of them is none")]
    Order,
    #[error("it has a value whose dot it has not seen")]
    Unseen,
    #[error("it has a dot that is far above all that were ever given")]
    Counter,
}

/// One of the values of a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Sibling {
    pub stamp: Stamp,
    pub operation: OperationId,
    pub value: Bytes,
    /// Wall clock, milliseconds since the Unix epoch; from then on the value is gone.
    pub expires_ms: Option<u64>,
}

impl fmt::Debug for Sibling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}=({} bytes)", self.stamp, self.value.len())
    }
}

/// What a client's write does to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub stamp: Stamp,
    pub operation: OperationId,
    /// What the client has seen, and replaces.
    pub context: Context,
    /// `None` removes what the context covers and adds nothing.
    pub value: Option<Bytes>,
    pub expires_ms: Option<u64>,
}

/// The write would leave more siblings, or more bytes of them, than a key may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the key has too many siblings: read it, and write with the context of that read")]
pub struct TooManySiblings;

/// All values of a key and what is known of those that are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Siblings {
    context: Context,
    values: BTreeMap<Dot, Sibling>,
}

impl Siblings {
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The values by their dots; retries of one operation may be among them more than once.
    pub fn values(&self) -> impl Iterator<Item = (Dot, &Sibling)> {
        self.values.iter().map(|(dot, sibling)| (*dot, sibling))
    }

    /// One value an operation, in the order of their stamps.
    pub fn distinct(&self) -> Vec<&Sibling> {
        let mut values: Vec<_> = self.values.values().collect();
        values.sort_by_key(|sibling| sibling.stamp);
        let mut operations = BTreeSet::new();
        values.retain(|sibling| {
            operations.insert(sibling.operation) || is_on(Mutant::OneOperationIsSeveralValues)
        });
        values
    }

    /// Applies a write as `actor`, which has seen every dot that it has minted of this key. Returns the write's dot,
    /// if it has one. A write that is here already changes nothing.
    pub fn mint(&mut self, actor: DotActor, change: Change) -> Result<Option<Dot>, TooManySiblings> {
        let Change { stamp, operation, context, value, expires_ms } = change;
        let known = self.values.iter().find(|(_, sibling)| sibling.operation == operation);
        if let Some((dot, _)) = known
            && !is_on(Mutant::OperationsAreForgotten)
        {
            return Ok(Some(*dot));
        }
        let mut changed = self.clone();
        changed.values.retain(|dot, _| !context.contains(*dot) && !is_on(Mutant::WritesReplaceTheUnseen));
        changed.context.join(&context);
        let dot = value.map(|value| {
            let dot = changed.context.next(actor);
            changed.context.insert(dot);
            changed.values.insert(dot, Sibling { stamp, operation, value, expires_ms });
            dot
        });
        if dot.is_some() && !changed.is_within_caps() && !is_on(Mutant::SiblingsAreUncapped) {
            return Err(TooManySiblings);
        }
        // Of its own, a write adds no more than its dot: what a token brings along beyond the cap was never read here.
        let context_bytes = changed.context.encoded_len();
        if context_bytes > CONTEXT_BYTES_MAX.max(self.context.encoded_len() + DOT_BYTES) {
            return Err(TooManySiblings);
        }
        *self = changed;
        Ok(dot)
    }

    fn is_within_caps(&self) -> bool {
        let distinct = self.distinct();
        let bytes: usize = distinct.iter().map(|sibling| sibling.value.len()).sum();
        distinct.len() <= SIBLINGS_MAX && (bytes <= SIBLING_BYTES_MAX || distinct.len() <= 1)
    }

    /// What both stand for: each value that neither has seen go.
    pub fn merge(mut self, other: &Self) -> Self {
        self.values.retain(|dot, _| other.values.contains_key(dot) || !other.context.contains(*dot));
        for (dot, sibling) in &other.values {
            if !self.context.contains(*dot) || is_on(Mutant::ReplacedValuesReturn) {
                self.values.insert(*dot, sibling.clone());
            }
        }
        self.context.join(&other.context);
        self
    }

    /// Removes what has expired; true if there was any.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let before = self.values.len();
        self.values.retain(|_, sibling| sibling.expires_ms.is_none_or(|expires| expires > now_ms));
        self.values.len() < before
    }

    pub(crate) fn encoded_len(&self) -> usize {
        let value = |sibling: &Sibling| SIBLING_HEADER_BYTES + sibling.value.len();
        self.context.encoded_len() + 4 + self.values.values().map(value).sum::<usize>()
    }

    pub(crate) fn put(&self, out: &mut impl BufMut) {
        self.context.put(out);
        out.put_u32(count(self.values.len()));
        for (dot, Sibling { stamp, operation, value, expires_ms }) in &self.values {
            put_dot(*dot, out);
            out.put_slice(&stamp.to_bytes());
            out.put_slice(&operation.0);
            out.put_u64(expires_ms.unwrap_or_default());
            out.put_u32(count(value.len()));
            out.put_slice(value);
        }
    }

    /// The values share the given bytes.
    pub(crate) fn decode(mut input: Bytes) -> Result<Self, CausalError> {
        let context = Context::take(&mut input)?;
        let mut values = BTreeMap::new();
        for _ in 0..take_count(&mut input)? {
            let dot = take_dot(&mut input)?;
            if !context.contains(dot) {
                return Err(CausalError::Unseen);
            }
            if values.last_key_value().is_some_and(|(last, _)| *last >= dot) {
                return Err(CausalError::Order);
            }
            let stamp = Stamp::from_bytes(take_16(&mut input)?);
            let operation = OperationId(take_16(&mut input)?);
            let expires = input.try_get_u64().map_err(|_| CausalError::TooShort)?;
            let length = take_count(&mut input)?;
            if input.len() < length {
                return Err(CausalError::TooShort);
            }
            let value = input.split_to(length);
            let expires_ms = (expires > 0).then_some(expires);
            values.insert(dot, Sibling { stamp, operation, value, expires_ms });
        }
        if input.is_empty() { Ok(Self { context, values }) } else { Err(CausalError::TooLong) }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a record is far below 4 GiB")
}

fn put_dot(Dot { actor, counter }: Dot, out: &mut impl BufMut) {
    out.put_u64(actor.0);
    out.put_u64(counter);
}

fn take_dot(input: &mut Bytes) -> Result<Dot, CausalError> {
    let actor = input.try_get_u64().map_err(|_| CausalError::TooShort)?;
    let counter = input.try_get_u64().map_err(|_| CausalError::TooShort)?;
    if counter == 0 {
        return Err(CausalError::Order);
    }
    if counter > COUNTER_MAX {
        return Err(CausalError::Counter);
    }
    Ok(Dot { actor: DotActor(actor), counter })
}

fn take_count(input: &mut Bytes) -> Result<usize, CausalError> {
    let count = input.try_get_u32().map_err(|_| CausalError::TooShort)?;
    usize::try_from(count).map_err(|_| CausalError::TooLong)
}

fn take_16(input: &mut Bytes) -> Result<[u8; 16], CausalError> {
    let bytes = input.first_chunk::<16>().copied().ok_or(CausalError::TooShort)?;
    input.advance(16);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Actor;
    use proptest::prelude::*;

    fn change(n: u8, context: Context, value: Option<&'static str>) -> Change {
        Change {
            stamp: Stamp::new(n.into(), 0, Actor(1)),
            operation: OperationId([n; 16]),
            context,
            value: value.map(Bytes::from),
            expires_ms: None,
        }
    }

    fn texts(siblings: &Siblings) -> Vec<&[u8]> {
        siblings.distinct().iter().map(|sibling| &sibling.value[..]).collect()
    }

    /// Three replicas after random mints, with contexts read from random replicas, and random merges.
    fn replicas(steps: Vec<(u8, u8, u8)>) -> [Siblings; 3] {
        let mut replicas = [Siblings::default(), Siblings::default(), Siblings::default()];
        for (n, (kind, at, from)) in steps.into_iter().enumerate() {
            let (at, from) = (usize::from(at) % 3, usize::from(from) % 3);
            let n = u8::try_from(n).unwrap();
            let actor = DotActor(at as u64 + 1);
            match kind % 4 {
                0 => {
                    replicas[at].mint(actor, change(n, Context::default(), Some("v"))).unwrap();
                }
                1 => {
                    let context = replicas[from].context().clone();
                    replicas[at].mint(actor, change(n, context, Some("w"))).unwrap();
                }
                2 => {
                    let context = replicas[from].context().clone();
                    replicas[at].mint(actor, change(n, context, None)).unwrap();
                }
                _ => replicas[at] = replicas[at].clone().merge(&replicas[from].clone()),
            }
        }
        replicas
    }

    proptest! {
        #[test]
        fn merge_is_a_join(steps in prop::collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let [a, b, c] = replicas(steps);
            prop_assert_eq!(a.clone().merge(&b), b.clone().merge(&a));
            prop_assert_eq!(a.clone().merge(&b).merge(&c), a.clone().merge(&b.clone().merge(&c)));
            prop_assert_eq!(a.clone().merge(&a), a);
        }

        #[test]
        fn siblings_and_contexts_read_back(steps in prop::collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let key = RecordKey::new("default", b"k").unwrap();
            for siblings in replicas(steps) {
                let mut out = BytesMut::new();
                siblings.put(&mut out);
                prop_assert_eq!(out.len(), siblings.encoded_len());
                prop_assert_eq!(Siblings::decode(out.freeze()), Ok(siblings.clone()));
                let token = siblings.context().to_token(&key);
                prop_assert_eq!(Context::from_token(&key, &token), Ok(siblings.context().clone()));
            }
        }

        #[test]
        fn bytes_from_elsewhere_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let key = RecordKey::new("default", b"k").unwrap();
            let _ = Siblings::decode(bytes.clone().into());
            let _ = Context::from_token(&key, &bytes.into());
        }
    }

    #[test]
    fn concurrent_writes_stay_until_a_write_has_seen_them() {
        let [mut a, mut b] = [Siblings::default(), Siblings::default()];
        a.mint(DotActor(1), change(1, Context::default(), Some("x"))).unwrap();
        b.mint(DotActor(2), change(2, Context::default(), Some("y"))).unwrap();
        let both = a.clone().merge(&b);
        assert_eq!(texts(&both), [b"x", b"y"]);
        a.mint(DotActor(1), change(3, both.context().clone(), Some("z"))).unwrap();
        assert_eq!(texts(&a.merge(&both)), [b"z"]);
    }

    #[test]
    fn the_context_of_a_write_covers_no_sibling_that_its_writer_has_not_seen() {
        let mut a = Siblings::default();
        a.mint(DotActor(1), change(1, Context::default(), Some("x"))).unwrap();
        let dot = a.mint(DotActor(1), change(2, Context::default(), Some("y"))).unwrap().unwrap();
        let mut seen = Context::default();
        seen.insert(dot);
        a.mint(DotActor(1), change(3, seen, Some("z"))).unwrap();
        assert_eq!(texts(&a), [b"x", b"z"]);
    }

    #[test]
    fn a_retry_is_one_with_what_it_repeats() {
        let [mut a, mut b] = [Siblings::default(), Siblings::default()];
        let write = change(1, Context::default(), Some("x"));
        let dot = a.mint(DotActor(1), write.clone()).unwrap();
        assert_eq!(a.mint(DotActor(1), write.clone()).unwrap(), dot);
        b.mint(DotActor(2), write).unwrap();
        assert_eq!(texts(&a.merge(&b)), [b"x"]);
    }

    #[test]
    fn more_siblings_than_a_key_may_have_are_refused_and_nothing_is_lost() {
        let mut a = Siblings::default();
        for n in 0..SIBLINGS_MAX {
            let n = u8::try_from(n).unwrap();
            a.mint(DotActor(1), change(n, Context::default(), Some("x"))).unwrap();
        }
        let before = a.clone();
        assert_eq!(a.mint(DotActor(1), change(200, Context::default(), Some("y"))), Err(TooManySiblings));
        assert_eq!(a, before);
        let seen = a.context().clone();
        a.mint(DotActor(1), change(200, seen, Some("y"))).unwrap();
        assert_eq!(texts(&a), [b"y"]);
    }

    #[test]
    fn a_token_of_another_key_is_refused() {
        let [key, other] = [b"k", b"l"].map(|key| RecordKey::new("default", key).unwrap());
        let mut context = Context::default();
        context.insert(Dot { actor: DotActor(1), counter: 1 });
        let token = context.to_token(&key);
        assert_eq!(Context::from_token(&other, &token), Err(CausalError::Checksum));
        assert_eq!(Context::from_token(&key, &token.slice(..token.len() - 1)), Err(CausalError::Checksum));
        assert_eq!(Context::from_token(&key, &Bytes::new()), Err(CausalError::TooShort));
    }

    #[test]
    fn no_token_brings_a_record_to_where_there_is_no_next_dot() {
        let key = RecordKey::new("causal", b"k").unwrap();
        let token = |context: Context| Context::from_token(&key, &context.to_token(&key));
        let actor = DotActor(1);
        for counter in [u64::MAX, COUNTER_MAX + 1] {
            let base = Context { base: BTreeMap::from([(actor, counter)]), ..Context::default() };
            let single = Context { single: BTreeSet::from([Dot { actor, counter }]), ..Context::default() };
            assert_eq!((token(base), token(single)), (Err(CausalError::Counter), Err(CausalError::Counter)));
        }
        let highest = Context { base: BTreeMap::from([(actor, COUNTER_MAX)]), ..Context::default() };
        let just_below = Context { base: BTreeMap::from([(actor, COUNTER_MAX - 1)]), ..Context::default() };
        for (made_up, counters) in [(highest, [1, 2]), (just_below, [COUNTER_MAX, 1])] {
            let mut a = Siblings::default();
            let mut seen = token(made_up).unwrap();
            for (n, counter) in (1..).zip(counters) {
                let dot = a.mint(actor, change(n, seen, Some("x"))).unwrap().unwrap();
                assert_eq!((dot.counter, dot.actor == actor), (counter, counter == COUNTER_MAX));
                seen = token(a.context().clone()).unwrap();
            }
            assert_eq!(texts(&a), [b"x"], "each has replaced what was there");
            let mut out = BytesMut::new();
            a.put(&mut out);
            assert_eq!(Siblings::decode(out.freeze()), Ok(a), "what was written with it can be read");
        }
    }

    #[test]
    fn tokens_that_were_made_up_do_not_let_a_record_grow_for_ever() {
        let made_up = |from: u64| {
            let actors = from..from + 2_000;
            Context { base: actors.map(|actor| (DotActor(actor), 1)).collect(), ..Context::default() }
        };
        let mut a = Siblings::default();
        a.mint(DotActor(1), change(1, made_up(10_000), Some("x"))).unwrap();
        assert_eq!(a.mint(DotActor(1), change(2, made_up(20_000), Some("y"))), Err(TooManySiblings));
        assert_eq!(a.mint(DotActor(1), change(2, made_up(20_000), None)), Err(TooManySiblings));
        let seen = a.context().clone();
        a.mint(DotActor(2), change(3, seen, Some("z"))).unwrap();
        assert_eq!(texts(&a), [b"z"], "who has read it may write");
    }

    #[test]
    fn a_value_that_has_expired_stays_gone() {
        let mut a = Siblings::default();
        let write = Change { expires_ms: Some(10), ..change(1, Context::default(), Some("x")) };
        a.mint(DotActor(1), write).unwrap();
        let before = a.clone();
        assert!(!a.expire(9));
        assert!(a.expire(10));
        assert_eq!(before.merge(&a), a);
    }
}
