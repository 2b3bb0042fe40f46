#!/usr/bin/env bash
# local [--nodes N]       a store of N (3) local processes; --create-keyspace NAME=MODE as in init; --stop, --remove
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# Node K listens on 7400, 7401, 7402 and 7403 (clients, nodes, gossip, HTTP) + 10 (K - 1), on loopback.
home=$cache/local
port() { echo $((7400 + 10 * ($1 - 1) + $2)); } # node, 0..3

nodes=3
keyspaces=()
action=start
while [ $# -gt 0 ]; do
  case $1 in
    --nodes)
      nodes=${2:-}
      shift
      ;;
    --nodes=*) nodes=${1#*=} ;;
    --create-keyspace)
      keyspaces+=(--create-keyspace "${2:-}")
      shift
      ;;
    --create-keyspace=*) keyspaces+=("$1") ;;
    --stop) action=stop ;;
    --remove) action=remove ;;
    --status) action=status ;;
    *) fail "usage: ./dev.sh local [--nodes N] [--create-keyspace NAME=lww|siblings]... | --stop | --remove | --status" ;;
  esac
  [ $# = 0 ] || shift
done
[[ $nodes =~ ^[1-9][0-9]?$ ]] || fail "--nodes needs a number from 1 to 99"

write_config() { # node
  local k=$1 seeds="" other
  for other in $(seq "$nodes"); do
    [ "$other" = "$k" ] || seeds+=", \"127.0.0.1:$(port "$other" 2)\""
  done
  mkdir -p "$home/node-$k"
  cat >"$home/node-$k/keystore.yaml" <<YAML
data_dir: $home/node-$k/data
node: {name: local-$k, advertise_host: 127.0.0.1}
listen:
  client: 127.0.0.1:$(port "$k" 0)
  peer: 127.0.0.1:$(port "$k" 1)
  gossip: 127.0.0.1:$(port "$k" 2)
  http: 127.0.0.1:$(port "$k" 3)
gossip: {cluster: local/local, seeds: [${seeds#, }]}
log: {format: text}
YAML
}

start_node() { # node
  local dir=$home/node-$1
  if running "$dir/pid"; then return; fi
  setsid nohup "$binaries/keystore-node" --config "$dir/keystore.yaml" >>"$dir/log" 2>&1 </dev/null &
  echo "$! $(started $!)" >"$dir/pid"
}

still_runs() { # node
  if running "$home/node-$1/pid"; then return; fi
  echo "node $1 has ended; the end of $home/node-$1/log:"
  tail -n 20 "$home/node-$1/log"
  return 1
}

# Every node answers a read; 3 is the exit status for a key that is not there.
wait_until_serving() {
  local deadline=$((SECONDS + 60)) k status
  for k in $(seq "$nodes"); do
    while :; do
      status=0
      keystorectl --endpoint "127.0.0.1:$(port "$k" 0)" --timeout 2s get no-such-key || status=$?
      case $status in 0 | 3) break ;; esac
      still_runs "$k" || return 1
      [ $SECONDS -lt $deadline ] || { echo "not after a minute" && return 1; }
      sleep 0.2
    done
  done
}

# A node takes one init for good, so all of them have to be there first.
initialise() {
  local deadline=$((SECONDS + 60)) k endpoints=()
  # It may ask for a keyspace that the store was not made with: then init says so.
  [ ! -e "$home/initialised" ] || [ ${#keyspaces[@]} -gt 0 ] || return 0
  for k in $(seq "$nodes"); do
    endpoints+=(--admin-endpoint "127.0.0.1:$(port "$k" 1)")
    until (: <>"/dev/tcp/127.0.0.1/$(port "$k" 1)") 2>/dev/null; do
      still_runs "$k" || return 1
      [ $SECONDS -lt $deadline ] || { echo "not after a minute" && return 1; }
      sleep 0.1
    done
  done
  keystorectl "${endpoints[@]}" init --replication-factor $((nodes < 3 ? nodes : 3)) "${keyspaces[@]}"
  touch "$home/initialised"
}

start() {
  local k clients=""
  "$top/scripts/build.sh"
  if [ -e "$home/nodes" ] && [ "$(cat "$home/nodes")" != "$nodes" ]; then
    fail "the local store has $(cat "$home/nodes") nodes; ./dev.sh local --remove removes it with its data"
  fi
  mkdir -p "$home"
  echo "$nodes" >"$home/nodes"
  for k in $(seq "$nodes"); do
    write_config "$k"
    start_node "$k"
    clients+=",127.0.0.1:$(port "$k" 0)"
  done
  step "initialise the store" initialise
  step "wait until every node serves" wait_until_serving
  cat <<TRY

$nodes nodes serve; configuration, data, log and pid file of each are under $home/node-K. To have keystorectl:

  export PATH=$cache/bin:\$PATH
  export KEYSTORE_ENDPOINTS=${clients#,}

Then try
  keystorectl put colour green
  keystorectl get colour
  keystorectl status
  keystorectl bench --seconds 10
  ./dev.sh local --stop                   # keeps the data; --remove does not
TRY
}

stop() {
  local pid_file pids=() pid
  for pid_file in "$home"/node-*/pid; do
    if running "$pid_file"; then
      read -r pid _ <"$pid_file"
      pids+=("$pid")
    fi
  done
  [ ${#pids[@]} -gt 0 ] || return 0
  step "stop ${#pids[@]} local nodes" stop_all "${pids[@]}"
}

# A node drains: it needs some seconds, and at most as many as its drain.grace_ms and drain.timeout_ms allow.
stop_all() { # pid...
  local deadline=$((SECONDS + 30))
  kill "$@"
  while kill -0 "$@" 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || { kill -KILL "$@" 2>/dev/null || true; break; }
    sleep 0.1
  done
}

status() {
  local dir
  for dir in "$home"/node-*/; do
    [ -d "$dir" ] || continue
    if running "${dir}pid"; then echo "local ${dir%/}: runs"; else echo "local ${dir%/}: stopped"; fi
  done
}

case $action in
  start) start ;;
  stop) stop ;;
  status) status ;;
  remove)
    stop
    rm -rf "$home"
    ;;
esac
