#!/usr/bin/env bash
# Makes the two images from the compiled binaries, without a registry, as archives in the cache.
# Each image's tag is a hash of what is in it, so a changed program is a new image for imagePullPolicy IfNotPresent;
# a second archive has it under the version, which is what config/ and the chart name. images/NAME.tag says the tag.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
"$top/scripts/packages.sh" buildah binutils
mkdir -p "$cache/images"
cd "$cache/images"
exec 9>lock
flock 9 # another call would write the same archives

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
context=$scratch/context
mkdir "$context"
# A storage of its own, gone afterwards: nobody's other images are touched, and none of ours pile up.
buildah=(buildah --storage-driver vfs --root "$scratch/storage" --runroot "$scratch/run")
for name in keystore-node keystorectl keystore-operator; do
  strip -o "$context/$name" "$binaries/$name"
done

image() { # target of the Dockerfile, binaries in it...
  local target=$1 name="keystore.dev/keystore-$1" file="keystore-$1" tag kind
  shift
  tag=$(cd "$context" && cat "$top/Dockerfile" "$@" | sha256sum | cut -c1-12)
  if [ "$(cat "$file.tag" 2>/dev/null)" != "$tag" ] || [ ! -e "$file-$tag.tar" ]; then
    "${buildah[@]}" bud -q --isolation chroot --build-arg SOURCE=prebuilt --target "$target" \
      -t "$name:$tag" -f "$top/Dockerfile" "$context"
    rm -f "$file"-*.tar "$file.tag"
    for kind in "$tag" "$version"; do
      "${buildah[@]}" push -q "$name:$tag" "oci-archive:part:$name:$kind"
      mv part "$file-$kind.tar"
    done
    echo "$tag" >"$file.tag"
  fi
  echo "$name:$tag"
}

image node keystore-node keystorectl
image operator keystore-operator
