//! Writes the CustomResourceDefinitions, or checks that they are current.
//!
//! `crdgen [--check] [DIRECTORY]`; the directory is `crds/generated` by default. With `--check` nothing is written
//! and the exit status is 1 if a file differs from the types.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use keystore_crds::manifest::{CLUSTER_FILE, cluster_manifest};

fn main() -> ExitCode {
    let (flags, directories): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let known = flags.iter().all(|flag| flag == "--check");
    if !known || directories.len() > 1 {
        eprintln!("usage: crdgen [--check] [DIRECTORY]");
        return ExitCode::from(2);
    }
    let directory = directories.first().map_or_else(|| PathBuf::from("crds/generated"), PathBuf::from);
    match run(&directory.join(CLUSTER_FILE), !flags.is_empty()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: &Path, check: bool) -> Result<(), String> {
    let manifest = cluster_manifest().map_err(|error| error.to_string())?;
    if !check {
        return std::fs::write(file, manifest).map_err(|error| format!("{}: {error}", file.display()));
    }
    let current = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    if current == manifest {
        Ok(())
    } else {
        Err(format!("{} differs from the types: run crdgen and commit the result", file.display()))
    }
}
