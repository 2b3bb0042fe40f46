#!/usr/bin/env bash
# down                    stop Kubernetes with all that is in it, volumes too; what was built stays
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
[ $# = 0 ] || fail "usage: ./dev.sh down [--cluster packages|kind|minikube]"

cluster_stop
# Takes the context out of the user's kubeconfig again, with the cluster and the user that only it names.
if [ -e "$user_kubeconfig" ] && command -v kubectl >/dev/null; then
  export KUBECONFIG=$user_kubeconfig
  if [ "$(kubectl config current-context 2>/dev/null)" = keystore ]; then kubectl config unset current-context >/dev/null; fi
  kubectl config delete-context keystore >/dev/null 2>&1 || true
  kubectl config delete-cluster keystore >/dev/null 2>&1 || true
  kubectl config delete-user keystore-admin >/dev/null 2>&1 || true
fi
