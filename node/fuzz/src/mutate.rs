//! Seeded changes to bytes: what breaks decoders is lengths, counts, tags, cuts and repetitions.

use rand::Rng as _;
use rand::rngs::SmallRng;

/// No decoder needs more to be wrong.
const BYTES_MAX: usize = 1 << 16;

/// Numbers on which sums and casts go wrong.
const NUMBERS: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX.cast_unsigned(), u64::MAX];

/// One to eight changes; `other` is another input, parts of which may come in.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut SmallRng) {
    for _ in 0..random.random_range(1..=8) {
        change(bytes, other, random);
        bytes.truncate(BYTES_MAX);
    }
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut SmallRng) {
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..9) {
        0 => with_byte(bytes, at, |byte| byte ^ 1 << random.random_range(0..8)),
        1 => with_byte(bytes, at, |_| random.random()),
        2 => with_byte(bytes, at, |byte| byte.wrapping_add(if random.random() { 1 } else { 0xff })),
        3 => bytes.insert(at, random.random()),
        4 => drop(bytes.drain(at..(at + random.random_range(0..=16)).min(bytes.len()))),
        5 => bytes.truncate(at),
        6 => overwrite_with_number(bytes, at, random),
        7 => {
            let end = (at + random.random_range(0..=32)).min(bytes.len());
            let again = bytes.get(at..end).unwrap_or_default().to_vec();
            insert(bytes, at, &again);
        }
        _ => {
            let from = random.random_range(0..=other.len());
            let end = (from + random.random_range(0..=64)).min(other.len());
            insert(bytes, at, other.get(from..end).unwrap_or_default());
        }
    }
}

fn with_byte(bytes: &mut [u8], at: usize, new: impl FnOnce(u8) -> u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = new(*byte);
    }
}

/// A number of one to eight bytes, big-endian or little-endian.
fn overwrite_with_number(bytes: &mut [u8], at: usize, random: &mut SmallRng) {
    let number = NUMBERS.get(random.random_range(0..NUMBERS.len())).copied().unwrap_or_default();
    let width = 1 << random.random_range(0..4);
    let big = number.to_be_bytes();
    let little = number.to_le_bytes();
    let number = if random.random() { big.get(8 - width..) } else { little.get(..width) };
    for (place, byte) in bytes.iter_mut().skip(at).zip(number.unwrap_or_default()) {
        *place = *byte;
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, more: &[u8]) {
    let rest = bytes.split_off(at.min(bytes.len()));
    bytes.extend_from_slice(more);
    bytes.extend_from_slice(&rest);
}
