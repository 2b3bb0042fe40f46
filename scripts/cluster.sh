# The Kubernetes that the commands work with: how one starts and stops, and how images get into it. Everything else is
# the same for all kinds.
# shellcheck shell=bash

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kubernetes=$cache/kubernetes
user_kubectl=$(command -v kubectl || true)
export PATH=$kubernetes:$PATH

cluster_kind() {
  local kind
  case ${KEYSTORE_KUBERNETES:-} in
    packages | kind | minikube)
      echo "$KEYSTORE_KUBERNETES"
      return
      ;;
    ?*) fail "--cluster is packages, kind or minikube" ;;
  esac
  for kind in kind minikube; do
    if command -v $kind >/dev/null && docker info >/dev/null 2>&1; then
      echo $kind
      return
    fi
  done
  echo packages
}

# Starts what is not running and writes $KUBECONFIG, with one context: keystore.
cluster_start() {
  case $(cluster_kind) in
    packages)
      [ "$(id -u)" = 0 ] || fail "a Kubernetes from packages needs root (on Debian or Ubuntu); or install kind and Docker"
      step "build Kubernetes (first time: some minutes)" "$top/e2e/kubernetes/build.sh" "$kubernetes"
      ln -sf "$kubernetes/kubectl" "$cache/bin/kubectl"
      step "start Kubernetes" "$top/e2e/kubernetes/up.sh" "$kubernetes" 3
      cp "${KUBERNETES_STATE:-/var/lib/keystore-kubernetes}/admin.kubeconfig" "$KUBECONFIG"
      ;;
    kind)
      use_kubectl_of_the_user
      kind get clusters 2>/dev/null | grep -qx keystore || step "start kind" kind create cluster --name keystore --config "$top/scripts/kind.yaml"
      kind get kubeconfig --name keystore >"$KUBECONFIG"
      kubectl config rename-context kind-keystore keystore >/dev/null
      ;;
    minikube)
      use_kubectl_of_the_user
      step "start minikube" minikube start --profile keystore --nodes 3 --keep-context
      KUBECONFIG=$user_kubeconfig kubectl config view --flatten --minify --context keystore >"$KUBECONFIG"
      ;;
  esac
  chmod 600 "$KUBECONFIG"
}

use_kubectl_of_the_user() {
  [ -n "$user_kubectl" ] || fail "kubectl is missing: kind and minikube come without one"
  [ "$user_kubectl" = "$cache/bin/kubectl" ] || ln -sf "$user_kubectl" "$cache/bin/kubectl"
}

cluster_stop() {
  case $(cluster_kind) in
    packages) step "stop Kubernetes" "$top/e2e/kubernetes/down.sh" ;;
    kind) step "stop kind" kind delete cluster --name keystore ;;
    minikube) step "stop minikube" minikube delete --profile keystore ;;
  esac
  rm -f "$KUBECONFIG" "$cache/loaded"
}

cluster_is_up() {
  [ -e "$KUBECONFIG" ] && kubectl get --raw /readyz --request-timeout 5s >/dev/null 2>&1
}

need_cluster() {
  cluster_is_up || fail "Kubernetes is not running: ./dev.sh up starts it"
}

# Brings both images into every node, once for each cluster and each content.
cluster_load() {
  local tags
  tags="$(kubectl get namespace kube-system -o jsonpath='{.metadata.uid}') $(image_of node) $(image_of operator)"
  [ "$(cat "$cache/loaded" 2>/dev/null)" != "$tags" ] || return 0
  step "load the images" load_archives "$cache"/images/keystore-{node,operator}-*.tar
  echo "$tags" >"$cache/loaded"
}

load_archives() { # file...
  local file
  case $(cluster_kind) in
    packages) "$top/e2e/kubernetes/load.sh" "$@" ;;
    kind) for file in "$@"; do kind load image-archive "$file" --name keystore; done ;;
    minikube) for file in "$@"; do minikube image load "$file" --profile keystore; done ;;
  esac
}

image_of() { # node or operator
  echo "keystore.dev/keystore-$1:$(cat "$cache/images/keystore-$1.tag")"
}

# Installs the operator of the present images and waits until it runs.
operator_install() {
  local overlay=$cache/overlay
  mkdir -p "$overlay"
  cat >"$overlay/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: ["$(realpath --relative-to "$overlay" "$top")/config/default"]
images: [{name: keystore.dev/keystore-operator, newTag: "$(cat "$cache/images/keystore-operator.tag")"}]
patches:
- target: {kind: Deployment, name: keystore-operator}
  patch: |-
    [{"op": "replace", "path": "/spec/template/spec/containers/0/args/0", "value": "--node-image=$(image_of node)"}]
YAML
  kubectl apply -k "$overlay"
  kubectl wait --for=condition=Established --timeout=60s crd/keystoreclusters.keystore.dev
  # kubectl remembers for hours which resources there are, and `explain` believes it: let it look again.
  kubectl api-resources --api-group keystore.dev
  kubectl -n keystore-system rollout status deployment/keystore-operator --timeout=120s
}

# From these sources to an operator that runs on the Kubernetes that is there, or is started.
operator_up() {
  "$top/scripts/build.sh"
  cluster_start
  step "build the images" "$top/scripts/images.sh"
  cluster_load
  step "install the operator" operator_install
}
