#!/usr/bin/env bash
# Installs the packages, builds every Kubernetes component as one binary, and makes the pause image.
# Usage: build.sh DIR. What DIR has for these sources is kept: cold it takes some minutes on two cores, then no time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)

"$here/../../scripts/packages.sh" containerd runc containernetworking-plugins iptables iproute2 conntrack ethtool \
  ipset xfsprogs mount util-linux buildah openssl gcc libc6-dev
command -v go >/dev/null || { echo "Go is missing: install Go 1.26 or newer (https://go.dev/dl)" >&2; exit 1; }

cd "$here"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
hash=$(cat go.mod go.sum main.go ./*/*.go | sha256sum | cut -c1-12)
binary="kubernetes-$version-$hash"
if [ ! -x "$out/$binary" ]; then
  echo "building Kubernetes $version"
  # A build cache of its own, gone afterwards: it would take gigabytes and is of no use again.
  scratch=$(mktemp -d "$out/building.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  package=k8s.io/component-base/version
  minor=${version#v1.}
  GOCACHE="$scratch/cache" CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$scratch/$binary" \
    -ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}" .
  rm -f "$out"/kubernetes-v*
  mv "$scratch/$binary" "$out/$binary"
  rm -rf "$scratch"
fi
for component in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl coredns metrics-server loop-volumes; do
  ln -sf "$binary" "$out/$component"
done

pause="pause-$(cat pause.c Dockerfile.pause | sha256sum | cut -c1-12).tar"
if [ ! -e "$out/$pause" ]; then
  echo "building the pause image"
  scratch=$(mktemp -d "$out/building.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  mkdir "$scratch/context"
  gcc -static -Os -s -Wall -Wextra -o "$scratch/context/pause" pause.c
  image=keystore.dev/pause:1
  buildah=(buildah --storage-driver vfs --root "$scratch/storage" --runroot "$scratch/run")
  "${buildah[@]}" bud -q --isolation chroot -t $image -f Dockerfile.pause "$scratch/context"
  "${buildah[@]}" push -q $image "oci-archive:$scratch/pause.tar:$image"
  rm -f "$out"/pause*
  mv "$scratch/pause.tar" "$out/$pause"
fi
ln -sf "$pause" "$out/pause.tar"
