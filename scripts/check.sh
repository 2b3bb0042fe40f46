#!/usr/bin/env bash
# check [--fix]           format, generated files, clippy, docs, licenses, shell, chart; --fix writes what can be
set -euo pipefail
# shellcheck source=cluster.sh
. "$(dirname "$0")/cluster.sh"
deny_version=0.20.2
deny=$cache/tools/cargo-deny-$deny_version/bin/cargo-deny
chart=charts/keystore-operator
fix=
case "$*" in
  "") ;;
  --fix) fix=yes ;;
  *) fail "usage: ./dev.sh check [--fix]" ;;
esac
need_rust
cd "$top"

install_deny() {
  [ ! -x "$deny" ] || return 0
  # From another directory, or .cargo/config.toml would ask for a static binary; and not optimised: it reads a few files.
  local scratch=$cache/building-cargo-deny
  (cd / && CARGO_TARGET_DIR=$scratch CARGO_PROFILE_DEV_DEBUG=false cargo install --locked --debug --no-default-features \
    --version $deny_version --root "$cache/tools/cargo-deny-$deny_version" cargo-deny)
  rm -rf "$scratch"
}

tools() {
  "$top/scripts/packages.sh" shellcheck
  "$top/e2e/tools/build.sh" "$cache/tools"
  # For kustomize: any kubectl will do.
  command -v kubectl >/dev/null || "$top/e2e/kubernetes/build.sh" "$kubernetes"
  install_deny
}

formatted() {
  if [ -n "$fix" ]; then cargo fmt --all && gofmt -w e2e; fi
  cargo fmt --all --check
  [ -z "$(gofmt -l e2e)" ] || { gofmt -d e2e && return 1; }
}

generated() {
  local crd=keystoreclusters.keystore.dev.yaml
  # All of the workspace, as everywhere: for one package alone, cargo would compile its dependencies anew.
  cargo build --locked --profile "$profile" --workspace --bins
  if [ -n "$fix" ]; then
    "$binaries/crdgen"
    cp "crds/generated/$crd" "$chart/crds/"
  fi
  "$binaries/crdgen" --check
  diff -u "crds/generated/$crd" "$chart/crds/$crd"
}

lints() { cargo clippy --locked --profile "$profile" --workspace --all-targets -- -D warnings; }

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --profile "$profile" --workspace --no-deps --document-private-items; }

licenses() { "$deny" --locked check bans licenses sources; }

shell() { git ls-files '*.sh' .ci/run | xargs shellcheck; }

# The chart and config/ are two ways to the same objects.
manifests() {
  local rendered
  rendered=$(mktemp -d)
  helm lint --strict "$chart"
  helm template keystore-operator "$chart" --namespace keystore-system --include-crds >"$rendered/chart.yaml"
  kubectl kustomize config/default >"$rendered/config.yaml"
  drift "$rendered/config.yaml" "$rendered/chart.yaml"
  rm -r "$rendered"
}

passed=0
failed=()
check() { # what, function
  local status
  # Not `if step …`: that would suspend `set -e` in everything the function does.
  set +e
  step "$1" strictly "$2"
  status=$?
  set -e
  if [ $status = 0 ]; then passed=$((passed + 1)); else failed+=("$1"); fi
}

strictly() { # function
  set -e
  "$1"
}

step "set up the tools (first time: some minutes)" tools
check "format" formatted
check "generated files" generated
check "clippy" lints
check "docs" docs
check "licenses and sources of dependencies" licenses
check "shell scripts" shell
check "chart and manifests" manifests
[ ${#failed[@]} = 0 ] || echo "failed: $(printf '%s; ' "${failed[@]}")"
echo "checks: $passed passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
