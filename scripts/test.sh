#!/usr/bin/env bash
# test [ARGUMENTS]        every crate's tests, the simulation among them; arguments go to cargo test
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
need_rust
cd "$top"
cargo test --locked --profile "$profile" --workspace "$@"
