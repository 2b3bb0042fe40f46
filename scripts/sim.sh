#!/usr/bin/env bash
# sim [--seed S|--runs N] the simulation of whole clusters: its usual seeds, one of them with its trace, or the first N
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
need_rust
tests=()
[[ ${1:-} != --*=* ]] || set -- "${1%%=*}" "${1#*=}"
case ${1:-}:${2:-} in
  :) ;;
  --seed:?*) export KEYSTORE_SIM_SEED=$2 ;;
  --runs:?*) export KEYSTORE_SIM_RUNS=$2 ;;
  *) fail "usage: ./dev.sh sim [--seed S | --runs N]" ;;
esac
[[ ${2:-1} =~ ^[0-9]+$ && "${1:-} ${2:-}" != "--runs 0" ]] || fail "$1 needs a number, not $2"
# One seed, or many, are of that test alone: the mutants have seeds of their own.
[ $# = 0 ] || tests=(the_promises_hold_whatever_goes_wrong)
cd "$top"
cargo test --locked --profile "$profile" -p keystore-core --test sim -- --nocapture "${tests[@]}"
