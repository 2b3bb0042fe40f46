# What the commands of dev.sh share: where things are, and steps that show that they are alive.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KEYSTORE_CACHE:-$HOME/.cache/keystore}
logs=$cache/logs
mkdir -p "$logs" "$cache/bin"

# One target directory and one profile for tests, clippy, docs and images, so that nothing is compiled twice.
profile=${KEYSTORE_PROFILE:-ci}
export CARGO_TARGET_DIR=$cache/target
# shellcheck disable=SC2034 # for those who source this
binaries=$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/$profile

# The kubeconfig that these scripts use themselves; `up` merges it into the user's.
# shellcheck disable=SC2034
user_kubeconfig=${KUBECONFIG:-$HOME/.kube/config}
user_kubeconfig=${user_kubeconfig%%:*}
export KUBECONFIG=$cache/kubeconfig
export PATH=$cache/bin:$cache/tools/bin:$PATH

# What people have set for their own calls of keystorectl is not meant for these scripts.
unset KEYSTORE_ENDPOINTS KEYSTORE_ADMIN_ENDPOINTS KEYSTORE_CLUSTER KEYSTORE_NAMESPACE KEYSTORE_KEYSPACE \
  KEYSTORE_CONSISTENCY KEYSTORE_TIMEOUT KEYSTORE_OUTPUT

fail() { # sentence
  echo "$1" >&2
  exit 1
}

# Runs a command with its output in a log, and says every now and then how long it has taken and what it says. On a
# terminal that is one line that changes; elsewhere a line every half minute. When it fails, the log's end is shown.
step() { # what, command...
  local what=$1 log begun=$SECONDS shown=0 pid status=0
  shift
  log=$logs/$(tr -cs 'A-Za-z0-9\n' - <<<"$what").log
  [ -t 2 ] || echo "… $what" >&2
  "$@" >"$log" 2>&1 &
  pid=$!
  # Background processes of a script do not hear Ctrl-C.
  trap 'kill '"$pid"' 2>/dev/null; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    shown=$(progress "$what" "$log" $((SECONDS - begun)) "$shown")
  done
  wait "$pid" || status=$?
  trap - INT TERM
  [ ! -t 2 ] || printf '\r\033[K' >&2
  if [ $status != 0 ]; then
    echo "✗ $what, after $((SECONDS - begun)) s; the end of $log:" >&2
    tail -n 40 "$log" >&2
    return $status
  fi
  echo "✓ $what ($((SECONDS - begun)) s)"
}

progress() { # what, log, elapsed seconds, when last shown: shows it if it is time to, and prints when that was
  local every=30 last
  [ ! -t 2 ] || every=1
  if [ $(($3 - $4)) -lt $every ]; then
    echo "$4"
    return
  fi
  last=$(tail -c 400 "$2" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | tr -d '\000-\037' || true)
  if [ -t 2 ]; then
    printf '\r\033[K%s' "$(cut -c "1-$(($(tput cols 2>/dev/null || echo 100) - 1))" <<<"… $1 $3 s  $last")" >&2
  else
    echo "  $3 s: ${last:0:110}" >&2
  fi
  echo "$3"
}

# What was compiled from another checkout has the paths of that one in it, and cargo takes it for fresh.
own_target() {
  local mark=$CARGO_TARGET_DIR/checkout
  [ "$(cat "$mark" 2>/dev/null)" != "$top" ] || return 0
  rm -rf "$CARGO_TARGET_DIR"/*/"$profile"/.fingerprint/keystore*
  mkdir -p "$CARGO_TARGET_DIR"
  echo "$top" >"$mark"
}

need_rust() {
  own_target
  "$top/scripts/packages.sh" gcc libc6-dev binutils
  command -v cargo >/dev/null && return
  [ ! -x "$HOME/.cargo/bin/cargo" ] || { export PATH=$HOME/.cargo/bin:$PATH; return; }
  fail "Rust is missing: install it with https://rustup.rs and call this again"
}

# Ends what was started with a pid file of "pid start-time", and nothing that came later under its id.
started() { # pid: the start time of a live process
  sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'
}

running() { # pid file
  local pid start
  read -r pid start 2>/dev/null <"$1" && [ -n "$start" ] && [ "$(started "$pid")" = "$start" ]
}
