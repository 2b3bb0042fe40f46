#!/usr/bin/env bash
# Looks at a cluster through clients that nobody here wrote: kubectl, helm, grpcurl, grpc-health-probe and the parser and
# linter of Prometheus' text format. Needs an installed operator, the tools on the PATH, and pods that this machine can
# reach (e2e/kubernetes). Its last line counts what passed and failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
namespace=stock-clients
out=$(mktemp)
passed=0
failed=0

expect() { # what, pattern in the output, command...
  local what=$1 pattern=$2 status
  shift 2
  "$@" >"$out" 2>&1
  status=$?
  if [ $status = 0 ] && grep -q -- "$pattern" "$out"; then
    passed=$((passed + 1))
    echo "ok: $what"
  else
    failed=$((failed + 1))
    echo "FAILED: $what: exit status $status of: $*"
    head -n 30 "$out"
  fi
}

finish() {
  kubectl delete namespace $namespace --ignore-not-found --wait=false >/dev/null
  rm -f "$out"
}
trap finish EXIT

address_of() { # resource
  kubectl -n $namespace get "$1" -o jsonpath='{.spec.clusterIP}{.status.podIP}' 2>/dev/null
}
lint_metrics() { # host:port
  curl -sS --max-time 10 "http://$1/metrics" | metrics
}
# bytes are base64 in JSON
key=$(printf 'from grpcurl' | base64)
value=$(printf 'a value' | base64)

kubectl delete namespace $namespace --ignore-not-found >/dev/null
kubectl create namespace $namespace >/dev/null
kubectl label namespace $namespace pod-security.kubernetes.io/enforce=restricted >/dev/null

expect "kubectl explain knows the fields" replicationFactor kubectl explain ksc.spec
expect "the samples are valid" created kubectl -n $namespace create --dry-run=server --validate=strict -f config/samples
expect "config/default applies" keystore-operator kubectl apply --dry-run=server -k config/default
expect "helm would install the chart" "STATUS: pending-install" \
  helm install stock charts/keystore-operator --namespace $namespace --dry-run=server --skip-crds
expect "the minimal sample applies" created kubectl -n $namespace create -f config/samples/minimal.yaml
expect "kubectl wait sees it Ready" "condition met" kubectl -n $namespace wait --for=condition=Ready --timeout=180s ksc/demo

service=$(address_of service/demo)
pod=$(address_of pod/demo-0)
for endpoint in "$service:7400" "$pod:7401"; do
  expect "grpcurl finds services on :${endpoint##*:} by reflection" grpc.health.v1.Health grpcurl -plaintext "$endpoint" list
  expect "grpc-health-probe on :${endpoint##*:}" SERVING grpc-health-probe -addr "$endpoint"
done
expect "grpc-health-probe of the service by name" SERVING grpc-health-probe -addr "$service:7400" -service keystore.v1.KeyStore
expect "grpcurl puts a key" stamp grpcurl -plaintext -d "{\"key\": \"$key\", \"value\": \"$value\"}" "$service:7400" keystore.v1.KeyStore/Put
expect "grpcurl gets it" "$value" grpcurl -plaintext -d "{\"key\": \"$key\"}" "$service:7400" keystore.v1.KeyStore/Get
expect "grpcurl scans" "$value" grpcurl -plaintext -d '{}' "$service:7400" keystore.v1.KeyStore/Scan
operation="{\"operation\": {\"get\": {\"key\": \"$key\"}}, \"id\": 7}"
expect "grpcurl gets it in a session" "$value" grpcurl -plaintext -d "$operation" "$service:7400" keystore.v1.KeyStore/Session
operation="{\"operations\": [{\"get\": {\"key\": \"$key\"}}]}"
expect "grpcurl gets it in a batch" "$value" grpcurl -plaintext -d "$operation" "$service:7400" keystore.v1.KeyStore/Batch
for k in 0 1 2; do
  expect "metrics of demo-$k parse and lint" "no problems" lint_metrics "$(address_of pod/demo-$k):7403"
done
operator=$(kubectl -n keystore-system get pods -l app.kubernetes.io/name=keystore-operator -o jsonpath='{.items[0].status.podIP}')
expect "metrics of the operator parse and lint" "no problems" lint_metrics "$operator:8080"

echo "stock-clients: $passed passed, $failed failed"
[ $failed = 0 ]
