#!/usr/bin/env bash
# e2e [NAME…|--all|--rotation HASH]   scenarios on Kubernetes, which it starts if need be; no argument: the core set
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"

"$top/scripts/build.sh"
"$top/e2e/tools/build.sh" "$cache/tools"
cluster_start
step "build the images" "$top/scripts/images.sh"
cluster_load
step "install the operator" operator_install
KEYSTORE_NODE_IMAGE=$(image_of node)
export KEYSTORE_NODE_IMAGE
cd "$top"
cargo run --locked --quiet --profile "$profile" -p keystore-e2e -- "$@"
