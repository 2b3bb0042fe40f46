//! The commands on keys: get, put, delete.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keystore_client::{Client, Durability, Read, ReadOptions, VALUE_BYTES_MAX, WriteOptions, Written};
use serde::Serialize;

use crate::args::{DurabilityArg, Globals, Output};
use crate::failure::{Exit, Failure};
use crate::output::{print_json, print_line, print_raw};
use crate::reach;

#[derive(Serialize)]
struct ReadReport {
    values: Vec<String>,
    /// How the values are written here.
    encoding: &'static str,
    stamp: String,
}

#[derive(Serialize)]
struct WriteReport {
    stamp: String,
    acks: u32,
    durability: &'static str,
}

pub(crate) async fn get(globals: &Globals, key: OsString) -> Result<(), Failure> {
    let (_addresses, client) = connect(globals).await?;
    let read = client.get(&globals.keyspace, key.into_vec(), ReadOptions::default()).await?;
    let Some(first) = read.value() else {
        return Err(Failure::new(Exit::NoSuchKey, "NO_SUCH_KEY", "no such key"));
    };
    match globals.output {
        Output::Table => print_raw(&first.value),
        Output::Json => print_json(&report_read(&read, &first.stamp.to_string())),
    }
}

fn report_read(read: &Read, stamp: &str) -> ReadReport {
    let texts: Result<Vec<_>, _> =
        read.values.iter().map(|value| std::str::from_utf8(&value.value).map(str::to_owned)).collect();
    let (values, encoding) = match texts {
        Ok(texts) => (texts, "utf-8"),
        Err(_) => (read.values.iter().map(|value| STANDARD.encode(&value.value)).collect(), "base64"),
    };
    ReadReport { values, encoding, stamp: stamp.to_owned() }
}

/// What a put is to write.
pub(crate) struct Put {
    pub key: OsString,
    /// `-` means stdin.
    pub value: OsString,
    pub durability: Option<DurabilityArg>,
}

pub(crate) async fn put(globals: &Globals, put: Put) -> Result<(), Failure> {
    // Before anything is connected to: reading may take as long as somebody types.
    let value = match put.value {
        value if value == "-" => read_stdin()?,
        value => Bytes::from(value.into_vec()),
    };
    let (_addresses, client) = connect(globals).await?;
    let options = write_options(put.durability);
    let written = client.put(&globals.keyspace, put.key.into_vec(), value, options).await?;
    print_written(globals.output, written)
}

pub(crate) async fn delete(
    globals: &Globals,
    key: OsString,
    durability: Option<DurabilityArg>,
) -> Result<(), Failure> {
    let (_addresses, client) = connect(globals).await?;
    let written = client.delete(&globals.keyspace, key.into_vec(), write_options(durability)).await?;
    print_written(globals.output, written)
}

async fn connect(globals: &Globals) -> Result<(reach::Addresses, Client), Failure> {
    let addresses = reach::client_addresses(globals).await?;
    let client = reach::connect(globals, &addresses).await?;
    Ok((addresses, client))
}

fn write_options(durability: Option<DurabilityArg>) -> WriteOptions {
    WriteOptions { durability: durability.map(Into::into), ..WriteOptions::default() }
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

fn print_written(output: Output, written: Written) -> Result<(), Failure> {
    let Written { stamp, acks, durability } = written;
    match output {
        Output::Table => print_line(&stamp.to_string()),
        Output::Json => print_json(&WriteReport {
            stamp: stamp.to_string(),
            acks,
            durability: match durability {
                Durability::Synced => "synced",
                Durability::Periodic => "periodic",
            },
        }),
    }
}
