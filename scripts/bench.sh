#!/usr/bin/env bash
# bench [ARGUMENTS]       three nodes against a three-node etcd on this machine; --help says what can be chosen
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
"$top/scripts/build.sh"
# The etcd of the tests' Kubernetes.
[ -x "$cache/kubernetes/etcd" ] ||
  step "build etcd with the rest of Kubernetes (first time: some minutes)" "$top/e2e/kubernetes/build.sh" "$cache/kubernetes"
"$binaries/keystore-bench" --node "$binaries/keystore-node" --ctl "$binaries/keystorectl" \
  --etcd "$cache/kubernetes/etcd" --data "$cache/bench" "$@"
