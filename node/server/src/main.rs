//! The process of a storage node.

use std::process::ExitCode;

fn main() -> ExitCode {
    keystore_node::process::run()
}
