//! What goes over the wire: code generated from the .proto files, and the conversions to and from core.
//!
//! Conversions from the wire check everything that a type of core promises; no other crate parses these messages.

/// The generated messages, clients and servers of package `keystore.v1`.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("keystore.v1");
}

/// The descriptors of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod admin;
pub mod client;
pub mod error;
mod field;
pub mod history;
pub mod layout;
mod message;
pub mod peer;
mod scan;
pub mod succession;
pub mod unseen;
