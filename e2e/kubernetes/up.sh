#!/usr/bin/env bash
# Starts Kubernetes on this machine: a control plane in the root namespace, and nodes that are each a network
# namespace with its own containerd, kubelet, kube-proxy, pod network and zone.
# Usage: up.sh BIN_DIR [NODES]. Running it again starts only what is not running. It prints the KUBECONFIG to use.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
require_root
bin=$(cd "$1" && pwd)
mapfile -t nodes < <(seq "${2:-3}")
export PATH="$bin:$PATH"
lock

# 198.18.0.0/15 is the range reserved for benchmarks: it is nobody's network.
host_ip=198.18.255.1
services=198.19.0.0/16
first_service=198.19.0.1
dns=198.19.0.10
metrics_port=6444
all_pods=198.18.0.0/17 # leaves the node addresses out, so that kube-proxy masquerades what comes from them
node_ip() { echo "198.18.255.$((10 + $1))"; }
pods_of() { echo "198.18.$1.0/24"; }

start() { # name command...: one log and one pid file a process
  local name=$1
  shift
  if running "$name"; then return; fi
  setsid nohup "$@" >"$state/log/$name.log" 2>&1 </dev/null 9>&- &
  echo "$! $(started $!)" >"$state/pid/$name"
}

wait_for() { # what, the process that brings it about, command...
  local what=$1 process=$2
  shift 2
  for _ in $(seq 240); do
    if "$@" >/dev/null 2>&1; then return; fi
    if ! running "$process"; then
      echo "$process has ended; the end of $state/log/$process.log:" >&2
      tail -n 20 "$state/log/$process.log" >&2
      exit 1
    fi
    sleep 0.5
  done
  echo "timed out waiting for $what; see $state/log/$process.log" >&2
  exit 1
}

network() {
  ip link show keystore0 >/dev/null 2>&1 || ip link add keystore0 type bridge
  ip addr replace "$host_ip/24" dev keystore0
  ip link set keystore0 up
  echo 1 >/proc/sys/net/ipv4/ip_forward
  # Where Docker is at home, nothing is forwarded that no rule allows.
  iptables -C FORWARD -i keystore0 -j ACCEPT 2>/dev/null || iptables -I FORWARD -i keystore0 -j ACCEPT
  for k in "${nodes[@]}"; do
    [ -e "/run/netns/$(namespace_of "$k")" ] || ip netns add "$(namespace_of "$k")"
    if ! ip link show "keystore-$k" >/dev/null 2>&1; then
      ip link add "keystore-$k" type veth peer name eth0 netns "$(namespace_of "$k")"
      ip link set "keystore-$k" master keystore0 up
      enter "$k" ip link set lo up
      enter "$k" ip addr add "$(node_ip "$k")/24" dev eth0
      enter "$k" ip link set eth0 up
      enter "$k" ip route add default via "$host_ip"
      enter "$k" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    fi
    ip route replace "$(pods_of "$k")" via "$(node_ip "$k")"
    for other in "${nodes[@]}"; do
      [ "$other" = "$k" ] || enter "$k" ip route replace "$(pods_of "$other")" via "$(node_ip "$other")"
    done
  done
  ip route replace "$services" via "$(node_ip 1)" # services are reachable from the host too
}

authority() { # file name, common name
  [ -e "$1.crt" ] && return
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" -keyout "$1.key" -out "$1.crt" 2>/dev/null
}

certificate() { # name subject [alternative names] [authority]
  [ -e "$1.crt" ] && return
  local by=${4:-ca}
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA "$by.crt" -CAkey "$by.key" -CAcreateserial -days 3650 -out "$1.crt" \
    -extfile <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}") 2>/dev/null
}

kubeconfig() { # name
  local file="$state/$1.kubeconfig"
  [ -e "$file" ] && return
  kubectl config --kubeconfig "$file" set-cluster keystore --server "https://$host_ip:6443" --certificate-authority ca.crt --embed-certs
  kubectl config --kubeconfig "$file" set-credentials "keystore-$1" --client-certificate "$1.crt" --client-key "$1.key" --embed-certs
  kubectl config --kubeconfig "$file" set-context keystore --cluster keystore --user "keystore-$1"
  kubectl config --kubeconfig "$file" use-context keystore
} >/dev/null

identities() {
  cd "$state/pki"
  authority ca kubernetes
  # Whoever this one signs is believed about which user a request comes from, so it signs the API server's proxy and nobody else.
  authority front-proxy-ca front-proxy
  certificate front-proxy /CN=front-proxy "" front-proxy-ca
  [ -e sa.pub ] || { openssl genrsa -out sa.key 2048; openssl rsa -in sa.key -pubout -out sa.pub; } 2>/dev/null
  certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$host_ip,IP:$first_service"
  certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver
  certificate metrics-server /CN=metrics-server "DNS:metrics-server.kube-system.svc,IP:$host_ip"
  certificate admin /O=system:masters/CN=admin
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  for k in "${nodes[@]}"; do certificate "node-$k" "/O=system:nodes/CN=system:node:node-$k" "DNS:node-$k,IP:$(node_ip "$k")"; done
  for name in admin controller-manager scheduler proxy "${nodes[@]/#/node-}"; do kubeconfig "$name"; done
  cd "$state"
}

control_plane() {
  local store=http://127.0.0.1:12379 peer=http://127.0.0.1:12380
  start etcd etcd --name keystore --data-dir etcd --unsafe-no-fsync --listen-client-urls $store --advertise-client-urls $store \
    --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster keystore=$peer
  start kube-apiserver kube-apiserver --etcd-servers $store --advertise-address $host_ip --secure-port 6443 --service-cluster-ip-range $services \
    --allow-privileged --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --client-ca-file pki/ca.crt --tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key \
    --kubelet-client-certificate pki/apiserver-kubelet.crt --kubelet-client-key pki/apiserver-kubelet.key \
    --kubelet-certificate-authority pki/ca.crt --kubelet-preferred-address-types InternalIP \
    --requestheader-client-ca-file pki/front-proxy-ca.crt --requestheader-allowed-names front-proxy \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file pki/front-proxy.crt --proxy-client-key-file pki/front-proxy.key --enable-aggregator-routing \
    --service-account-issuer https://kubernetes.default.svc.cluster.local --service-account-key-file pki/sa.pub --service-account-signing-key-file pki/sa.key
  wait_for "the API server" kube-apiserver kubectl --kubeconfig admin.kubeconfig get --raw /readyz
  start kube-controller-manager kube-controller-manager --kubeconfig controller-manager.kubeconfig --root-ca-file pki/ca.crt \
    --service-account-private-key-file pki/sa.key --cluster-signing-cert-file pki/ca.crt --cluster-signing-key-file pki/ca.key \
    --use-service-account-credentials --leader-elect=false --bind-address 127.0.0.1 --horizontal-pod-autoscaler-sync-period 5s
  start kube-scheduler kube-scheduler --kubeconfig scheduler.kubeconfig --leader-elect=false --bind-address 127.0.0.1
  # Every 10 seconds is the most that it can do: nobody waits longer for an autoscaler than need be.
  start metrics-server metrics-server --kubeconfig admin.kubeconfig --bind-address $host_ip --secure-port $metrics_port \
    --tls-cert-file pki/metrics-server.crt --tls-private-key-file pki/metrics-server.key --metric-resolution 10s
  start loop-volumes loop-volumes -root "$state/volumes" -kubeconfig admin.kubeconfig
  cat >Corefile <<CORE
.:53 {
  bind $host_ip
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig $state/admin.kubeconfig
  }
  cache 5
  loadbalance
}
CORE
  start coredns coredns -conf Corefile
}

# The kubelet wants its root to exist in every hierarchy with the controllers it sets, and on version 1 a new cpuset is
# empty.
cgroups() { # node number
  local cgroup file
  for cgroup in $(cgroups_of "$1"); do
    mkdir -p "$cgroup"
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "${cgroup%/*}/$file" ] || cat "${cgroup%/*}/$file" >"$cgroup/$file"
    done
    [ ! -e "$cgroup/cgroup.subtree_control" ] || delegate "${cgroup%/*}" "$cgroup"
  done
}

delegate() { # cgroup version 2 directories, from the top down
  local cgroup controller controllers
  for cgroup in "$@"; do
    read -ra controllers <"$cgroup/cgroup.controllers"
    for controller in "${controllers[@]}"; do
      echo "+$controller" >"$cgroup/cgroup.subtree_control" || echo "no cgroup controller $controller under $cgroup" >&2
    done
  done
}

node() { # number
  local k=$1 dir="$state/node-$1"
  mkdir -p "$dir"/{cni,containerd,kubelet}
  cgroups "$k"
  # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower a score, and no pod would start
  cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd/root"
state = "$dir/containerd/state"
[grpc]
  address = "$dir/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "keystore.dev/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/containerd/opt"
TOML
  cat >"$dir/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pods_of "$k")"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$dir/ipam"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $state/pki/ca.crt}, webhook: {enabled: true}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
clusterDNS: [$dns]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$dir/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$(namespace_of "$k")
failCgroupV1: false
failSwapOn: false
tlsCertFile: $state/pki/node-$k.crt
tlsPrivateKeyFile: $state/pki/node-$k.key
resolvConf: ""
podLogsDir: $dir/pod-logs
serializeImagePulls: false
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 100Mi}
YAML
  local inside=(nsenter --net="/run/netns/$(namespace_of "$k")")
  start "containerd-$k" "${inside[@]}" containerd --config "$dir/containerd.toml"
  wait_for "containerd of node $k" "containerd-$k" ctr --address "$dir/containerd/containerd.sock" version
  ctr --address "$dir/containerd/containerd.sock" --namespace k8s.io images import "$bin/pause.tar" >/dev/null
  start "kubelet-$k" "${inside[@]}" kubelet --config "$dir/kubelet.yaml" --kubeconfig "node-$k.kubeconfig" --root-dir "$dir/kubelet" \
    --hostname-override "node-$k" --node-ip "$(node_ip "$k")" --node-labels "topology.kubernetes.io/zone=zone-$k"
  start "kube-proxy-$k" "${inside[@]}" kube-proxy --kubeconfig proxy.kubeconfig --hostname-override "node-$k" --cluster-cidr $all_pods --conntrack-max-per-core 0
  wait_for "node $k" "kubelet-$k" kubectl --kubeconfig admin.kubeconfig get node "node-$k"
}

add_ons() {
kubectl --kubeconfig admin.kubeconfig apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $dns
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [$host_ip], conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec:
  ports: [{name: https, port: 443, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics-server, namespace: kube-system, labels: {kubernetes.io/service-name: metrics-server}}
addressType: IPv4
ports: [{name: https, port: $metrics_port, protocol: TCP}]
endpoints: [{addresses: [$host_ip], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  service: {name: metrics-server, namespace: kube-system}
  group: metrics.k8s.io
  version: v1beta1
  caBundle: $(base64 -w0 pki/ca.crt)
  groupPriorityMinimum: 100
  versionPriority: 100
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: keystore.dev/loop-volumes
allowVolumeExpansion: true
reclaimPolicy: Delete
volumeBindingMode: WaitForFirstConsumer
YAML
}

# What an earlier boot or a killed run left behind (processes and mounts gone, volumes that would look wiped) is not a
# cluster that could be gone on with.
boot=$(cat /proc/sys/kernel/random/boot_id)
if [ -d "$state" ] && { [ "$(cat "$state/boot" 2>/dev/null)" != "$boot" ] || ! running etcd; }; then
  echo "removing what an earlier run left"
  "$here/down.sh" --locked
fi
mkdir -p "$state"/{pki,log,pid,etcd,volumes}
echo "$boot" >"$state/boot"
network
identities
echo "starting the control plane"
control_plane
echo "starting ${#nodes[@]} nodes"
starting=()
for k in "${nodes[@]}"; do
  node "$k" &
  starting+=($!)
done
for pid in "${starting[@]}"; do wait "$pid"; done
add_ons
kubectl --kubeconfig admin.kubeconfig wait --for=condition=Ready node --all --timeout=90s
# An API that is announced and does not answer keeps every namespace from being deleted.
wait_for "the metrics API" metrics-server kubectl --kubeconfig admin.kubeconfig get --raw /apis/metrics.k8s.io/v1beta1
echo "export KUBECONFIG=$state/admin.kubeconfig"
