//! The inputs that are kept: a directory for each target, a file for each input.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::targets::Target;

/// Where the corpus of a target lies.
pub fn directory(target: Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Every input of a target with its file's name, in their order.
pub fn load(target: Target) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let directory = directory(target);
    let entries = std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut inputs = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let input = std::fs::read(entry.path()).with_context(|| format!("read the input {name}"))?;
        inputs.push((name, input));
    }
    inputs.sort();
    Ok(inputs)
}
