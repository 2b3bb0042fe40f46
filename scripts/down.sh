#!/usr/bin/env bash
# down                    stop Kubernetes with all that is in it, volumes too; what was built stays
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
[ $# = 0 ] || fail "usage: ./dev.sh down [--cluster packages|kind|minikube]"

cluster_stop

# Takes the context out of the user's kubeconfig again, with the cluster and the user that it names.
if [ -e "$user_kubeconfig" ] && command -v kubectl >/dev/null; then
  export KUBECONFIG=$user_kubeconfig
  # A template, since jsonpath fails where the file has no contexts at all.
  template='{{range .contexts}}{{if eq .name "keystore"}}{{.context.cluster}} {{.context.user}}{{end}}{{end}}'
  read -r cluster user < <(kubectl config view -o go-template="$template" && echo)
  if [ -n "$cluster" ]; then
    if [ "$(kubectl config current-context 2>/dev/null)" = keystore ]; then kubectl config unset current-context; fi
    kubectl config delete-context keystore
    kubectl config delete-cluster "$cluster"
    kubectl config delete-user "$user"
  fi >/dev/null
fi
