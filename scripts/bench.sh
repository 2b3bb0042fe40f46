#!/usr/bin/env bash
# bench [PART] [FLAGS]    compare with etcd, figures, stress, growth, moving, report; the first two by default; --help says more
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
"$top/scripts/build.sh"
etcd=()
case ${1:-compare} in
  figures | stress | growth | moving | report) ;;
  *) # The etcd of the tests' Kubernetes.
    [ -x "$cache/kubernetes/etcd" ] ||
      step "build etcd with the rest of Kubernetes (first time: some minutes)" "$top/e2e/kubernetes/build.sh" "$cache/kubernetes"
    etcd=(--etcd "$cache/kubernetes/etcd")
    ;;
esac
"$binaries/keystore-bench" --node "$binaries/keystore-node" --ctl "$binaries/keystorectl" "${etcd[@]}" \
  --data "$cache/bench" "$@"
