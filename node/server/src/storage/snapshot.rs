//! A snapshot: all items of the memory engine in one file that is either provably whole or refused.
//!
//! ```text
//! magic "KSMS" | format u32 | sequence u64 | checksum u32
//! block: body bytes u32 | checksum u32 | body          one after the other, the last one without a body
//! body:  items, each: name bytes u16 | value bytes u32 | name | value
//! ```
//!
//! Numbers are big-endian. Each checksum is CRC-32C over the block's length and body, begun with the checksum before
//! it, so nothing can be changed, left out, or put elsewhere. Names only rise. The file ends where the last block
//! does.
//!
//! A snapshot is written beside the one before and takes its name once it is on disk: a crash leaves the one or the
//! other, and a leftover of the new one says nothing.

use std::path::{Path, PathBuf};

use super::engine::EngineError;
use super::file::{self, DiskError, DiskFile};

const MAGIC: [u8; 4] = *b"KSMS";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 4 + 4 + 8 + 4;
const BLOCK_HEADER_BYTES: usize = 4 + 4;
const ITEM_HEADER_BYTES: usize = 2 + 4;
/// A block is closed once it has so many bytes.
const BLOCK_BYTES: usize = 256 << 10;

pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("snapshot")
}

/// How many bytes an item takes in a snapshot.
pub(super) fn item_bytes(name: &[u8], value: &[u8]) -> u64 {
    (ITEM_HEADER_BYTES + name.len() + value.len()) as u64
}

/// Replaces the snapshot of a directory, telling how much was written after each block. When this returns, it is on
/// disk; after an error the one before is what it was.
pub(super) fn write<'a>(
    directory: &Path,
    sequence: u64,
    items: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    mut written: impl FnMut(u64),
) -> Result<u64, DiskError> {
    let path = path(directory);
    let result = (|| {
        let file = DiskFile::create(&file::new_name(&path))?;
        let mut writer = Writer::begin(file, sequence)?;
        for (name, value) in items {
            if writer.put(name, value)? {
                written(writer.offset);
            }
        }
        let (mut file, bytes) = writer.finish()?;
        file.rename(&path)?;
        file::sync_directory(directory)?;
        Ok(bytes)
    })();
    result.inspect_err(|_: &DiskError| {
        // What takes up the last space of a full disk goes; the error that matters is the first one.
        let _ = file::remove(&file::new_name(&path));
    })
}

struct Writer {
    file: DiskFile,
    offset: u64,
    chain: u32,
    /// The block being filled, its header included.
    block: Vec<u8>,
}

impl Writer {
    fn begin(file: DiskFile, sequence: u64) -> Result<Self, DiskError> {
        let header = encode_header(sequence);
        file.write_at(&header, 0)?;
        let chain = crc32c::crc32c(&header);
        Ok(Self { file, offset: header.len() as u64, chain, block: vec![0; BLOCK_HEADER_BYTES] })
    }

    /// True if this has filled a block, which was written.
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<bool, DiskError> {
        let name_len = u16::try_from(name.len()).expect("a name is an encoded key with some bytes before it");
        let value_len = u32::try_from(value.len()).expect("a record is far below 4 GiB");
        self.block.extend_from_slice(&name_len.to_be_bytes());
        self.block.extend_from_slice(&value_len.to_be_bytes());
        self.block.extend_from_slice(name);
        self.block.extend_from_slice(value);
        let is_full = self.block.len() >= BLOCK_BYTES;
        if is_full {
            self.end_block()?;
        }
        Ok(is_full)
    }

    fn end_block(&mut self) -> Result<(), DiskError> {
        let length = self.block.len() - BLOCK_HEADER_BYTES;
        let length = u32::try_from(length).expect("a block is far below 4 GiB").to_be_bytes();
        if let Some((header, body)) = self.block.split_first_chunk_mut::<BLOCK_HEADER_BYTES>() {
            self.chain = checksum(self.chain, length, body);
            *header = join(length, self.chain.to_be_bytes());
        }
        self.file.write_at(&self.block, self.offset)?;
        self.offset += self.block.len() as u64;
        self.block.truncate(BLOCK_HEADER_BYTES);
        Ok(())
    }

    fn finish(mut self) -> Result<(DiskFile, u64), DiskError> {
        if self.block.len() > BLOCK_HEADER_BYTES {
            self.end_block()?;
        }
        self.end_block()?;
        self.file.sync_all()?;
        Ok((self.file, self.offset))
    }
}

fn encode_header(sequence: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out
}

fn checksum(chain: u32, length: [u8; 4], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(chain, &length), body)
}

fn join([a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4]) -> [u8; 8] {
    [a, b, c, d, e, f, g, h]
}

/// What a snapshot says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Read {
    pub(super) sequence: u64,
    pub(super) bytes: u64,
}

/// Hands every item of the snapshot over, in order; `None` if there is no snapshot. What was handed over before an
/// error is not to be used.
pub(super) fn read(
    directory: &Path,
    item: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<Option<Read>, EngineError> {
    let path = path(directory);
    if !path.exists() {
        return Ok(None);
    }
    let file = DiskFile::open(&path)?;
    let length = file.len()?;
    let mut reader = Reader { file, length, path, offset: 0, chain: 0, last_name: Vec::new() };
    let sequence = reader.header()?;
    while reader.block(item)? {}
    if reader.offset != length {
        return Err(reader.damaged("it goes on behind its end"));
    }
    Ok(Some(Read { sequence, bytes: length }))
}

/// Writes a snapshot whose one block has this body, with the right checksums, and reads it. For [`super::fuzzing`].
pub(super) fn read_repaired(
    directory: &Path,
    body: &[u8],
    item: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<Option<Read>, EngineError> {
    let mut out = encode_header(7);
    let mut chain = crc32c::crc32c(&out);
    for body in [body, &[]] {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        chain = checksum(chain, length, body);
        out.extend_from_slice(&length);
        out.extend_from_slice(&chain.to_be_bytes());
        out.extend_from_slice(body);
    }
    if body.is_empty() {
        out.truncate(HEADER_BYTES + BLOCK_HEADER_BYTES);
    }
    let path = path(directory);
    std::fs::write(&path, &out).map_err(|error| DiskError::new("write", &path, error))?;
    read(directory, item)
}

struct Reader {
    file: DiskFile,
    length: u64,
    path: PathBuf,
    offset: u64,
    chain: u32,
    last_name: Vec<u8>,
}

impl Reader {
    fn header(&mut self) -> Result<u64, EngineError> {
        let header = self.bytes(HEADER_BYTES)?;
        let fields = header.split_first_chunk::<8>().map(|(start, rest)| (*start, rest.first_chunk::<8>()));
        let Some((start, Some(sequence))) = fields else { return Err(self.damaged("it is cut short")) };
        let sequence = u64::from_be_bytes(*sequence);
        if start != join(MAGIC, FORMAT.to_be_bytes()) {
            return Err(self.damaged("it does not begin as a snapshot that this version can read"));
        }
        if header != encode_header(sequence) {
            return Err(self.damaged("its checksum is wrong"));
        }
        self.chain = crc32c::crc32c(&header);
        self.offset += header.len() as u64;
        Ok(sequence)
    }

    /// False after the last block.
    fn block(&mut self, item: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool, EngineError> {
        let header = self.bytes(BLOCK_HEADER_BYTES)?;
        let (length, found) = header.split_at(4);
        let length: [u8; 4] = length.try_into().map_err(|_| self.damaged("it is cut short"))?;
        let body_len = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let block = self.bytes(BLOCK_HEADER_BYTES.saturating_add(body_len))?;
        let body = block.get(BLOCK_HEADER_BYTES..).unwrap_or_default();
        self.chain = checksum(self.chain, length, body);
        if found != self.chain.to_be_bytes() {
            return Err(self.damaged("its checksum is wrong"));
        }
        if self.items(body, item).is_none() {
            return Err(self.damaged("its checksum is right and its content makes no sense"));
        }
        self.offset += block.len() as u64;
        Ok(!body.is_empty())
    }

    /// `None` if the body does not hold items in order, which a right checksum rules out.
    fn items(&mut self, mut body: &[u8], item: &mut dyn FnMut(&[u8], &[u8])) -> Option<()> {
        while !body.is_empty() {
            let (name_len, rest) = body.split_first_chunk::<2>()?;
            let (value_len, rest) = rest.split_first_chunk::<4>()?;
            let (name, rest) = rest.split_at_checked(u16::from_be_bytes(*name_len).into())?;
            let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*value_len).try_into().ok()?)?;
            if name <= self.last_name.as_slice() {
                return None;
            }
            self.last_name.clear();
            self.last_name.extend_from_slice(name);
            item(name, value);
            body = rest;
        }
        Some(())
    }

    /// The next bytes; the offset stays.
    fn bytes(&self, count: usize) -> Result<Vec<u8>, EngineError> {
        if count as u64 > self.length - self.offset {
            return Err(self.damaged("it is cut short"));
        }
        let mut out = vec![0; count];
        self.file.read_exact_at(&mut out, self.offset)?;
        Ok(out)
    }

    fn damaged(&self, problem: &'static str) -> EngineError {
        EngineError::Snapshot { path: self.path.clone(), offset: self.offset, problem }
    }
}
