#!/usr/bin/env bash
# e2e [NAME…|--all|--rotation HASH]   scenarios on Kubernetes, which it starts if need be; no argument: the core set
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"

"$top/e2e/tools/build.sh" "$cache/tools"
operator_up
KEYSTORE_NODE_IMAGE=$(image_of node)
export KEYSTORE_NODE_IMAGE
cd "$top"

status=0
"$binaries/keystore-e2e" "$@" || status=$?
# Not where single scenarios were asked for.
case "${1:-}" in
  "" | --all | --rotation*)
    if [ "$(cluster_kind)" = packages ]; then
      "$top/scripts/packages.sh" curl
      e2e/stock-clients.sh || status=1
    else
      echo "stock-clients: skipped: pods cannot be reached from here"
    fi
    ;;
esac
exit $status
