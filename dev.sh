#!/usr/bin/env bash
# The one entry point for people: ./dev.sh COMMAND. Each command is a script of its name in scripts/.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  echo "usage: ./dev.sh COMMAND"
  for command in up down status logs test check e2e local sim fuzz bench scale clean; do
    [ ! -x "scripts/$command.sh" ] || sed -n '2s/^# /  /p' "scripts/$command.sh"
  done
  echo "With --cluster packages|kind|minikube, up, down, e2e, scale and clean use that Kubernetes; by default kind or minikube"
  echo "where it and Docker are there, and else one from packages, which needs root on Debian or Ubuntu."
}

arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --cluster)
      export KEYSTORE_KUBERNETES=${2:?--cluster needs packages, kind or minikube}
      shift
      ;;
    --cluster=*) export KEYSTORE_KUBERNETES=${1#*=} ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

command=${arguments[0]:-}
case $command in
  up | down | status | logs | test | check | e2e | local | sim | fuzz | bench | scale | clean)
    exec "scripts/$command.sh" "${arguments[@]:1}"
    ;;
  "" | -h | --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
