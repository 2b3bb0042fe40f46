#!/usr/bin/env bash
# logs [CLUSTER] [-f]     the operator's log, or that of a cluster's nodes (in namespace default, or after -n)
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
need_cluster

namespace=default
name=
options=(--tail=200)
while [ $# -gt 0 ]; do
  case $1 in
    -f) options+=(--follow) ;;
    -n) namespace=${2:?-n needs a namespace} && shift ;;
    -*) fail "usage: ./dev.sh logs [CLUSTER] [-n NAMESPACE] [-f]" ;;
    *) name=$1 ;;
  esac
  shift
done

if [ -n "$name" ]; then
  kubectl -n "$namespace" get ksc "$name" >/dev/null
  exec kubectl -n "$namespace" logs -l "keystore.dev/cluster=$name" --prefix --max-log-requests=64 "${options[@]}"
fi
exec kubectl -n keystore-system logs deployment/keystore-operator "${options[@]}"
