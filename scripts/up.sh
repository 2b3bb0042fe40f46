#!/usr/bin/env bash
# up                      Kubernetes, the operator and a cluster named demo, from nothing; again: what has changed
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
[ $# = 0 ] || fail "usage: ./dev.sh up [--cluster packages|kind|minikube]"
begun=$SECONDS

# Merges the context into the user's kubeconfig and makes it the current one. What comes first wins.
merge_kubeconfig() {
  mkdir -p "$(dirname "$user_kubeconfig")"
  (umask 077 && KUBECONFIG=$KUBECONFIG:$user_kubeconfig kubectl config view --flatten >"$user_kubeconfig.part")
  mv "$user_kubeconfig.part" "$user_kubeconfig"
}

demo_ready() {
  local deadline=$((SECONDS + 240))
  until kubectl wait --for=condition=Ready ksc/demo --timeout=2s; do
    kubectl get ksc demo -o jsonpath='{range .status.conditions[?(@.type=="Ready")]}{.reason}: {.message}{"\n"}{end}'
    if [ $SECONDS -ge $deadline ]; then
      kubectl describe ksc demo
      kubectl get pods -l keystore.dev/cluster=demo -o wide
      return 1
    fi
  done
}

# A new node image is the operator's own change, which waits for approval: no operator restarts a database unasked.
approve_new_image() {
  local image approval
  [ -z "$(kubectl get ksc demo -o jsonpath='{.spec.image}')" ] || return 0
  image=$(kubectl get statefulset demo --ignore-not-found -o jsonpath='{.spec.template.spec.containers[0].image}')
  if [ -z "$image" ] || [ "$image" = "$(image_of node)" ]; then return 0; fi
  kubectl wait --for=condition=UpdatePending --timeout=60s ksc/demo
  approval=$(kubectl get ksc demo -o jsonpath='{.status.conditions[?(@.type=="UpdatePending")].message}' \
    | grep -o 'keystore.dev/approve-update=[0-9a-z]*')
  kubectl annotate --overwrite ksc demo "$approval"
  kubectl wait --for=jsonpath='{.spec.template.spec.containers[0].image}'="$(image_of node)" --timeout=60s statefulset/demo
  kubectl rollout status statefulset/demo --timeout=300s
}

# Writes a key and reads it back: through the Service where this machine reaches it, elsewhere through port-forwards.
write_and_read() {
  local value ctl address
  value="hello, it is $(date +%T)"
  ctl=(kubectl keystore -c demo)
  address=$(kubectl get service demo -o jsonpath='{.spec.clusterIP}')
  if [ "$(cluster_kind)" = packages ]; then ctl=(keystorectl --endpoint "$address:7400"); fi
  "${ctl[@]}" put greeting "$value"
  [ "$("${ctl[@]}" get greeting)" = "$value" ]
}

operator_up
kubectl get ksc demo >/dev/null 2>&1 || kubectl apply -f "$top/config/samples/minimal.yaml"
step "bring a new node image to demo, if there is one" approve_new_image
step "wait until demo is Ready" demo_ready
step "write and read a key" write_and_read
merge_kubeconfig

kubectl get ksc demo
cat <<TRY

Up after $((SECONDS - begun)) s; the context keystore is the current one. To have kubectl, kubectl-keystore and keystorectl:

  export PATH=$cache/bin:\$PATH

Then try
  kubectl get ksc,pods -o wide
  kubectl keystore -c demo put colour green
  kubectl keystore -c demo get colour
  kubectl keystore -c demo status
  kubectl delete pod demo-1               # and go on writing
  kubectl explain ksc.spec
  ./dev.sh status; ./dev.sh logs; ./dev.sh e2e 1; ./dev.sh down
TRY
