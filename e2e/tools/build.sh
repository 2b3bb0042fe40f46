#!/usr/bin/env bash
# Tests and builds the tools of this directory's go.mod: helm, grpcurl, grpc-health-probe, and our own drift and metrics.
# Usage: build.sh DIR. They go to DIR/<hash of the sources>/, DIR/bin leads there; what is already built is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
command -v go >/dev/null || { echo "Go is missing: install Go 1.26 or newer (https://go.dev/dl)" >&2; exit 1; }

hash=$(cd "$here" && cat go.mod go.sum ./*/*.go | sha256sum | cut -c1-12)
if [ ! -d "$out/$hash" ]; then
  # A build cache of its own, gone afterwards: it would take gigabytes and is of no use again.
  scratch=$(mktemp -d "$out/building.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  mkdir "$scratch/bin"
  cd "$here"
  export GOCACHE="$scratch/cache" CGO_ENABLED=0
  go vet ./drift ./metrics
  go test ./drift ./metrics
  for package in $(sed -n '/^tool (/,/^)/s/^\t//p' go.mod) ./drift ./metrics; do
    echo "building ${package##*/}"
    go build -trimpath -ldflags '-s -w' -o "$scratch/bin/" "$package"
  done
  mv "$scratch/bin" "$out/$hash"
  find "$out" -mindepth 1 -maxdepth 1 -type d ! -name "$hash" ! -name 'building.*' -exec rm -rf {} +
fi
ln -sfn "$hash" "$out/bin"
