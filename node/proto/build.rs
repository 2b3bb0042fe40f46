//! Compiles the .proto files without protoc.

use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 4] = [
    "keystore/v1/keystore.proto",
    "keystore/v1/layout.proto",
    "keystore/v1/admin.proto",
    "keystore/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
