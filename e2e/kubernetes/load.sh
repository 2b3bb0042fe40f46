#!/usr/bin/env bash
# Imports OCI or Docker archives into every node. Usage: load.sh ARCHIVE...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
require_root

for dir in "$state"/node-*/; do
  [ -S "${dir}containerd/containerd.sock" ] || { echo "Kubernetes is not running here" >&2; exit 1; }
  for archive in "$@"; do
    ctr --address "${dir}containerd/containerd.sock" --namespace k8s.io images import "$archive" >/dev/null
  done
done
