#!/usr/bin/env bash
# status                  what runs: Kubernetes, the operator, the clusters and their pods; local nodes
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
[ $# = 0 ] || fail "usage: ./dev.sh status"

"$top/scripts/local.sh" --status
if ! cluster_is_up; then
  echo "Kubernetes is not running"
  exit 0
fi
kubectl get nodes -L topology.kubernetes.io/zone
echo
kubectl -n keystore-system get deployments
echo
kubectl get ksc -A
echo
kubectl get pods,pvc -A -l app.kubernetes.io/name=keystore -o wide
