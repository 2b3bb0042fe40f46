# What the scripts of this directory share: where things are, which processes are ours, and one lock.
# shellcheck shell=bash

state=${KUBERNETES_STATE:-/var/lib/keystore-kubernetes}

require_root() {
  [ "$(id -u)" = 0 ] && return
  echo "${0##*/}: needs root, for network namespaces, mounts and cgroups" >&2
  exit 1
}

# Two at once would start every process twice, or stop what the other has just started. The lock lives outside the
# state directory, which goes when Kubernetes is stopped, and must not be inherited by what is started (see start).
lock() {
  exec 9>/run/lock/keystore-kubernetes.lock
  flock --nonblock 9 && return
  echo "waiting for another start or stop of Kubernetes to end"
  flock --wait 600 9 || { echo "another start or stop has held /run/lock/keystore-kubernetes.lock for ten minutes" >&2; exit 1; }
}

# The start time of a live process: it tells the process from a zombie, and from a later one with the same id.
started() { # pid
  sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'
}

running() { # name
  local pid start
  read -r pid start 2>/dev/null <"$state/pid/$1" && [ -n "$start" ] && [ "$(started "$pid")" = "$start" ]
}

namespace_of() { echo "keystore-node-$1"; } # node number

# 'ip netns exec' would hide /sys/fs/cgroup.
enter() { # node number, command...
  nsenter --net="/run/netns/$(namespace_of "$1")" "${@:2}"
}

# Cgroup directories of a node: one in every hierarchy on version 1, a single one on version 2.
cgroups_of() { # node number
  local hierarchy
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo "/sys/fs/cgroup/$(namespace_of "$1")"
    return
  fi
  for hierarchy in /sys/fs/cgroup/*/; do
    [ ! -e "${hierarchy}cgroup.procs" ] || echo "$hierarchy$(namespace_of "$1")"
  done
}
