//! The commands on keys: get, put, delete, scan.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use keystore_client::{
    Client, Context, Durability, Entry, Read, ReadOptions, ScanOptions, VALUE_BYTES_MAX, WriteOptions,
    Written,
};
use serde::Serialize;

use crate::args::{Globals, Output, ScanArgs, WriteArgs};
use crate::failure::{Exit, Failure};
use crate::output::{List, print_json, print_line, print_raw};
use crate::reach;

#[derive(Serialize)]
struct ReadReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    values: Vec<String>,
    /// How key and values are written here.
    encoding: &'static str,
    /// The highest one.
    stamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
}

#[derive(Serialize)]
struct WriteReport {
    stamp: String,
    acks: u32,
    durability: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
}

pub(crate) async fn get(globals: &Globals, key: OsString) -> Result<(), Failure> {
    let (_addresses, client) = connect(globals).await?;
    let read = client.get(&globals.keyspace, key.into_vec(), ReadOptions::default()).await?;
    if read.values.is_empty() {
        return Err(Failure::new(Exit::NoSuchKey, "NO_SUCH_KEY", "no such key"));
    }
    match (globals.output, &read.values[..]) {
        (Output::Json, _) => print_json(&report_read(None, &read)),
        (Output::Table, [only]) => print_raw(&only.value),
        (Output::Table, siblings) => {
            siblings.iter().try_for_each(|sibling| print_bytes_line(&[&sibling.value]))
        }
    }
}

fn report_read(key: Option<&Bytes>, read: &Read) -> ReadReport {
    let text = |bytes: &Bytes| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let texts = || {
        let values = read.values.iter().map(|value| text(&value.value)).collect::<Option<Vec<_>>>()?;
        Some((key.map(text).map_or(Some(None), |key| key.map(Some))?, values))
    };
    let base64 = || {
        let values = read.values.iter().map(|value| STANDARD.encode(&value.value)).collect();
        (key.map(|key| STANDARD.encode(key)), values)
    };
    let ((key, values), encoding) = match texts() {
        Some(texts) => (texts, "utf-8"),
        None => (base64(), "base64"),
    };
    ReadReport {
        key,
        values,
        encoding,
        stamp: read.value().map_or_else(String::new, |value| value.stamp.to_string()),
        context: read.context.as_ref().map(token),
    }
}

/// In the form that `--context` takes.
fn token(context: &Context) -> String {
    URL_SAFE_NO_PAD.encode(context.as_bytes())
}

pub(crate) fn parse_token(text: &str) -> Result<Context, String> {
    match URL_SAFE_NO_PAD.decode(text) {
        Ok(bytes) if !bytes.is_empty() => Ok(Context::from_bytes(bytes)),
        _ => Err("a context is what -o json shows of an earlier answer".to_owned()),
    }
}

/// What a put is to write.
pub(crate) struct Put {
    pub key: OsString,
    /// `-` means stdin.
    pub value: OsString,
    pub options: WriteOptions,
}

pub(crate) async fn put(globals: &Globals, put: Put) -> Result<(), Failure> {
    // Before anything is connected to: reading may take as long as somebody types.
    let value = match put.value {
        value if value == "-" => read_stdin()?,
        value => Bytes::from(value.into_vec()),
    };
    let (_addresses, client) = connect(globals).await?;
    let written = client.put(&globals.keyspace, put.key.into_vec(), value, put.options).await?;
    print_written(globals.output, &written)
}

pub(crate) async fn delete(globals: &Globals, key: OsString, args: WriteArgs) -> Result<(), Failure> {
    let (_addresses, client) = connect(globals).await?;
    let written = client.delete(&globals.keyspace, key.into_vec(), args.into()).await?;
    print_written(globals.output, &written)
}

pub(crate) async fn scan(globals: &Globals, args: ScanArgs) -> Result<(), Failure> {
    let (_addresses, client) = connect(globals).await?;
    let options = ScanOptions {
        prefix: args.prefix.into_vec().into(),
        after: args.after.map(|after| after.into_vec().into()),
        limit: args.limit,
        ..ScanOptions::default()
    };
    let mut scan = client.scan(&globals.keyspace, options)?;
    match globals.output {
        Output::Json => {
            let mut list = List::begin()?;
            while let Some(Entry { key, read }) = scan.next().await? {
                list.print(&report_read(Some(&key), &read))?;
            }
            list.end()
        }
        Output::Table => {
            while let Some(Entry { key, read }) = scan.next().await? {
                for value in &read.values {
                    print_bytes_line(&[&key, b"\t", &value.value])?;
                }
            }
            Ok(())
        }
    }
}

fn print_bytes_line(parts: &[&[u8]]) -> Result<(), Failure> {
    print_raw(&[&parts.concat()[..], b"\n"].concat())
}

async fn connect(globals: &Globals) -> Result<(reach::Addresses, Client), Failure> {
    let addresses = reach::client_addresses(globals).await?;
    let client = reach::connect(globals, &addresses).await?;
    Ok((addresses, client))
}

/// One byte beyond the largest value is enough to see that it is too large.
fn read_stdin() -> Result<Bytes, Failure> {
    let limit = VALUE_BYTES_MAX + 1;
    let mut value = Vec::new();
    let read = std::io::stdin().lock().take(limit as u64).read_to_end(&mut value);
    read.map_err(|error| Failure::local("cannot read the value from stdin", &error))?;
    if value.len() == limit {
        return Err(Failure::usage(format!("a value has at most {VALUE_BYTES_MAX} bytes, stdin has more")));
    }
    Ok(value.into())
}

fn print_written(output: Output, written: &Written) -> Result<(), Failure> {
    let Written { stamp, acks, durability, context } = written;
    match output {
        Output::Table => print_line(&stamp.to_string()),
        Output::Json => print_json(&WriteReport {
            stamp: stamp.to_string(),
            acks: *acks,
            durability: match durability {
                Durability::Synced => "synced",
                Durability::Periodic => "periodic",
            },
            context: context.as_ref().map(token),
        }),
    }
}
