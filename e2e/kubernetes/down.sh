#!/usr/bin/env bash
# Stops what up.sh started and removes every trace of it, the volumes included. Nothing to stop is not an error.
# It goes on after a step that fails: a half-stopped cluster is of no use to anybody.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
require_root
# up.sh calls this for what an earlier boot left, and holds the lock then.
[ "${1:-}" = --locked ] || lock

stopping=()
stop() { # name...: only the process that was started, never a later one with its id
  local name pid
  for name in "$@"; do
    if running "$name"; then
      read -r pid _ <"$state/pid/$name"
      kill "$pid" && stopping+=("$pid")
    fi
    rm -f "$state/pid/$name"
  done
}

# Waits for what stop has told to end: five seconds are enough for all but an API server without its etcd.
stopped() {
  [ ${#stopping[@]} -gt 0 ] || return
  for _ in $(seq 50); do
    kill -0 "${stopping[@]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "${stopping[@]}" 2>/dev/null
}

# Pods outlive their containerd, so they go first; the kubelet before them, or it would start them again.
stop_node() { # directory
  local dir=$1 k=${1##*-} id
  stop "kubelet-$k" "kube-proxy-$k"
  local containers=(timeout 30 ctr --address "$dir/containerd/containerd.sock" --namespace k8s.io)
  if running "containerd-$k"; then
    for id in $("${containers[@]}" containers ls -q 2>/dev/null); do
      "${containers[@]}" tasks delete -f "$id" >/dev/null 2>&1
    done
  fi
  stop "containerd-$k"
}

# The names of the pods' network namespaces are in what containerd told runc.
pod_networks=$(grep -hoE '/run/netns/cni-[0-9a-f-]+' "$state"/node-*/containerd/state/*/k8s.io/*/config.json 2>/dev/null | sort -u)
for dir in "$state"/node-*/; do
  [ ! -d "$dir" ] || stop_node "${dir%/}"
done
stop loop-volumes coredns metrics-server kube-scheduler kube-controller-manager kube-apiserver etcd
stopped
# Where a containerd had died, its pods and their shims are still there.
cgroups=$(find /sys/fs/cgroup -maxdepth 2 -type d -name 'keystore-node-*' 2>/dev/null)
for cgroup in $cgroups; do
  find "$cgroup" -name cgroup.procs -print0 | xargs -0r cat | xargs -r kill -KILL 2>/dev/null
done
pgrep -f "^[^ ]*containerd-shim[^ ]* .*-address $state/" | xargs -r kill -KILL 2>/dev/null
awk -v under="$state/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount --lazy
for namespace in $pod_networks /run/netns/keystore-node-*; do
  [ ! -e "$namespace" ] || ip netns del "${namespace##*/}"
done
ip link del keystore0 2>/dev/null
iptables -D FORWARD -i keystore0 -j ACCEPT 2>/dev/null
for cgroup in $cgroups; do
  find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
done
find /var/log/containers -lname "$state/*" -delete 2>/dev/null
rm -rf "$state"
