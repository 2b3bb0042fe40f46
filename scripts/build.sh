#!/usr/bin/env bash
# Compiles every binary of the workspace and links those that people call into the cache's bin directory.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
need_rust
cd "$top"

step "compile the binaries (first time: some minutes)" cargo build --locked --profile "$profile" --workspace --bins
for name in keystorectl keystore-node; do
  ln -sf "$binaries/$name" "$cache/bin/$name"
done
ln -sf "$binaries/keystorectl" "$cache/bin/kubectl-keystore"
