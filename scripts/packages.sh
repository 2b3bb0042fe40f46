#!/usr/bin/env bash
# Installs those of the Debian packages that are missing. Usage: packages.sh NAME...
set -euo pipefail

missing=()
for package in "$@"; do
  state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [ "${state:0:2}" = ii ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "these programs are needed, and this is neither Debian nor Ubuntu: install them by hand: ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "packages are missing; run as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Another apt may be at work, as it is after the boot of many machines.
wait_for_lock=(-o DPkg::Lock::Timeout=300)
apt-get "${wait_for_lock[@]}" update -q
apt-get "${wait_for_lock[@]}" install -qy --no-install-recommends "${missing[@]}"
