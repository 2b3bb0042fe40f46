#!/usr/bin/env bash
# Builds the tools of this directory's go.mod (helm, grpcurl, grpc-health-probe) and our own, drift and metrics, which
# are tested first. Usage: build.sh DIR. They go to DIR/bin; one whose sources have not changed is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(mkdir -p "$1/bin" && cd "$1/bin" && pwd)
command -v go >/dev/null || { echo "Go is missing: install Go 1.26 or newer (https://go.dev/dl)" >&2; exit 1; }
cd "$here"

mapfile -t packages < <(sed -n '/^tool (/,/^)/s/^\t//p' go.mod)
packages+=(./drift ./metrics)
file_of() { # package: its binary with a hash of what it is made from
  local sources=(build.sh go.mod go.sum)
  [ ! -d "$1" ] || sources+=("$1"/*.go)
  echo "$bin/.${1##*/}-$(cat "${sources[@]}" | sha256sum | cut -c1-12)"
}

# A build cache of its own, gone afterwards: it would take gigabytes and is of no use again.
prepare() {
  [ -z "${GOCACHE:-}" ] || return 0
  scratch=$(mktemp -d "$bin/.building.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  export GOCACHE="$scratch" CGO_ENABLED=0
  # What helm says its version is, and that of the Kubernetes that `helm template` renders for.
  local helm=helm.sh/helm/v3 minor package
  minor=$(go list -m -f '{{.Version}}' k8s.io/client-go | cut -d. -f2)
  flags="-s -w -X $helm/internal/version.version=$(go list -m -f '{{.Version}}' $helm)"
  for package in pkg/lint/rules pkg/chartutil; do
    flags+=" -X $helm/$package.k8sVersionMajor=1 -X $helm/$package.k8sVersionMinor=$minor"
  done
}
unset GOCACHE

for package in "${packages[@]}"; do
  name=${package##*/}
  file=$(file_of "$package")
  if [ ! -x "$file" ]; then
    prepare
    echo "building $name"
    if [ -d "$package" ]; then
      go vet "$package"
      go test "$package"
    fi
    go build -trimpath -buildvcs=false -ldflags "$flags" -o "$scratch/$name" "$package"
    rm -f "$bin/.$name"-*
    mv "$scratch/$name" "$file"
  fi
  ln -sf "${file##*/}" "$bin/$name"
done
