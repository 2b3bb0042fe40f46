//! The process of a storage node.

use std::process::ExitCode;

/// Every operation allocates on one thread what another frees, where the C library's allocator is at its slowest.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keystore_node::process::run()
}
