#!/usr/bin/env bash
# scale                   scales a store of its own from three nodes to five and back under load, and draws what moves
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
[ $# = 0 ] || fail "usage: ./dev.sh scale [--cluster packages|kind|minikube]"

operator_up
KEYSTORE_NODE_IMAGE=$(image_of node)
export KEYSTORE_NODE_IMAGE
exec "$binaries/keystore-e2e" --demonstrate
