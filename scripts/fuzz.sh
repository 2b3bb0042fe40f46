#!/usr/bin/env bash
# fuzz [--seconds S] [--target T] [--seed N] every decoder of bytes from outside, fed with what nobody would send
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
need_rust
cd "$top"
cargo run --locked --profile "$profile" -p keystore-fuzz -- "$@"
