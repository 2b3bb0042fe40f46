//! What is fed: one plain function for each decoder, by name.
//!
//! Where a checksum would refuse every change, the function behind it is a target of its own, and the target of the
//! whole puts the right checksum in place: damage that a checksum notices is the checksum's business.

use bytes::Bytes;
use keystore_core::causal::Context;
use keystore_core::effect::Operation;
use keystore_core::layout::Layout;
use keystore_core::partition::RecordKey;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;
use keystore_node::peers::unpack;
use keystore_node::{config, storage};
use keystore_proto::client::Request;
use keystore_proto::peer::Frame;
use keystore_proto::v1;
use prost::Message as _;

/// The shape of a result: inputs with different ones are different to us.
pub type Signature = String;

/// A decoder and the name of its part of the corpus.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> Signature,
}

pub const TARGETS: [Target; 12] = [
    Target { name: "key", run: key },
    Target { name: "record", run: record },
    Target { name: "record-body", run: record_body },
    Target { name: "context", run: context },
    Target { name: "frame", run: frame },
    Target { name: "layout", run: layout },
    Target { name: "request", run: request },
    Target { name: "configuration", run: configuration },
    Target { name: "log-batch", run: log_batch },
    Target { name: "log-entries", run: log_entries },
    Target { name: "state", run: state },
    Target { name: "snapshot", run: snapshot },
];

fn any_key() -> RecordKey {
    RecordKey::new("default", b"k").expect("a key of one byte is one")
}

fn key(input: &[u8]) -> Signature {
    match RecordKey::from_encoded(Bytes::copy_from_slice(input)) {
        Ok(key) => {
            let again = RecordKey::new(key.keyspace(), &key.user_key());
            assert_eq!(again.as_ref(), Ok(&key), "a key that is taken apart and put together is the same");
            let (slot, bytes) = key.place();
            assert!(u32::from(slot) < keystore_core::partition::SLOTS && bytes == key.encoded());
            "key".to_owned()
        }
        Err(error) => shape(&error),
    }
}

fn record(input: &[u8]) -> Signature {
    let key = any_key();
    let mut stored = input.to_vec();
    if let Some(content) = stored.len().checked_sub(4) {
        stored.truncate(content);
        let checksum = crc32c_of(&[key.encoded(), &stored]);
        stored.extend_from_slice(&checksum.to_be_bytes());
    }
    let stored = Bytes::from(stored);
    match Record::decode(&key, &stored) {
        Ok(record) => {
            check_record(&record);
            let encoded = record.encode(&key);
            assert_eq!(Record::decode(&key, &encoded).as_ref(), Ok(&record));
            format!("record {}", record.body.kind())
        }
        Err(error) => shape(&error),
    }
}

/// The first byte is the kind.
fn record_body(input: &[u8]) -> Signature {
    let Some((kind, payload)) = input.split_first() else { return "empty".to_owned() };
    match Body::from_payload(*kind, Bytes::copy_from_slice(payload)) {
        Ok(body) => {
            let again = Body::from_payload(*kind, body.payload());
            assert_eq!(again.as_ref(), Ok(&body), "a body reads back");
            check_record(&Record { stamp: Stamp::from_bytes([7; 16]), body });
            format!("body {kind}")
        }
        Err(error) => shape(&error),
    }
}

/// What the store does with every record that it reads.
fn check_record(record: &Record) {
    assert_eq!(&record.clone().merge(record.clone()), record, "merge is idempotent");
    let reading = record.reading(1);
    if let Some(marked) = record.expired(u64::MAX) {
        assert_eq!(record.clone().merge(marked.clone()), marked, "what has expired stays so");
        assert!(marked.reading(0).values.len() <= reading.values.len().max(record.reading(0).values.len()));
    }
}

fn context(input: &[u8]) -> Signature {
    let key = any_key();
    let mut token = input.to_vec();
    let checksum = crc32c_of(&[key.encoded(), &token]);
    token.extend_from_slice(&checksum.to_be_bytes());
    match Context::from_token(&key, &token.into()) {
        Ok(context) => {
            let again = context.to_token(&key);
            let read = Context::from_token(&key, &again).expect("our own token reads");
            let mut joined = read.clone();
            joined.join(&read);
            let mut expected = context.clone();
            expected.join(&context);
            assert_eq!(joined, expected);
            format!("context {}", context.is_empty())
        }
        Err(error) => shape(&error),
    }
}

fn frame(input: &[u8]) -> Signature {
    let Ok(wire) = v1::PeerFrame::decode(input) else { return "no message".to_owned() };
    match unpack(wire).and_then(Frame::try_from) {
        Ok(frame) => {
            let encoded = v1::PeerFrame::from(frame.clone()).encode_to_vec();
            let again = v1::PeerFrame::decode(&encoded[..]).expect("our own message decodes");
            assert_eq!(Frame::try_from(again).as_ref(), Ok(&frame), "a frame reads back");
            shape(&frame)
        }
        Err(error) => shape(&error),
    }
}

fn layout(input: &[u8]) -> Signature {
    let Ok(wire) = v1::Layout::decode(input) else { return "no message".to_owned() };
    match Layout::try_from(wire) {
        Ok(layout) => {
            let again = Layout::try_from(v1::Layout::from(&layout)).expect("our own layout reads");
            assert_eq!((again.digest(), &again), (layout.digest(), &layout));
            for partition in layout.partitions.all() {
                assert!(
                    layout.replica_sets(partition).nodes().next().is_some(),
                    "somebody owns each partition"
                );
            }
            "layout".to_owned()
        }
        Err(error) => shape(&error),
    }
}

/// The first byte says which request.
fn request(input: &[u8]) -> Signature {
    let Some((kind, input)) = input.split_first() else { return "empty".to_owned() };
    let checked = match kind % 4 {
        0 => v1::GetRequest::decode(input).map(Request::try_from),
        1 => v1::PutRequest::decode(input).map(Request::try_from),
        2 => v1::DeleteRequest::decode(input).map(Request::try_from),
        _ => v1::Operation::decode(input).map(Request::try_from),
    };
    match checked {
        Ok(Ok(Request { operation, .. })) => match operation {
            Operation::Get { .. } => "get".to_owned(),
            Operation::Put { ttl_ms, .. } => format!("put {}", ttl_ms.is_some()),
            Operation::Delete { .. } => "delete".to_owned(),
            Operation::Scan { .. } => "scan".to_owned(),
        },
        Ok(Err(error)) => shape(&error),
        Err(_) => "no message".to_owned(),
    }
}

fn configuration(input: &[u8]) -> Signature {
    match config::from_text(&String::from_utf8_lossy(input)) {
        Ok(_) => "configuration".to_owned(),
        Err(error) => shape(&error.to_string()),
    }
}

fn log_batch(input: &[u8]) -> Signature {
    storage::fuzzing::log_batch(input)
}

fn log_entries(input: &[u8]) -> Signature {
    storage::fuzzing::log_entries(input)
}

fn state(input: &[u8]) -> Signature {
    storage::fuzzing::state(input)
}

fn snapshot(input: &[u8]) -> Signature {
    thread_local! {
        static DIRECTORY: tempfile::TempDir = tempfile::tempdir().expect("a temporary directory can be made");
    }
    DIRECTORY.with(|directory| storage::fuzzing::snapshot(directory.path(), input))
}

fn crc32c_of(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |checksum, part| crc32c::crc32c_append(checksum, part))
}

/// The words of a result without its numbers and contents.
fn shape(result: &impl std::fmt::Debug) -> Signature {
    let text = format!("{result:?}");
    let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() > 2);
    words.take(12).collect::<Vec<_>>().join(" ")
}
