#!/usr/bin/env bash
# clean                   stop everything and remove what was built or kept under ~/.cache/keystore
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
[ $# = 0 ] || fail "usage: ./dev.sh clean [--cluster packages|kind|minikube]"

"$top/scripts/local.sh" --stop
if [ -e "$KUBECONFIG" ] || [ -e "${KUBERNETES_STATE:-/var/lib/keystore-kubernetes}" ]; then "$top/scripts/down.sh"; fi
rm -rf "${cache:?}"
