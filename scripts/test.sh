#!/usr/bin/env bash
# Runs everything that a change must pass, starting from a bare Debian 12: build, tests, sanitizers, lint.
#   scripts/test.sh [CTEST_ARGUMENT...]     e.g. -L unit, -R reorder
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

start=$SECONDS
n_passed=0
n_failed=0
lines=()
# lane NAME COMMAND...: runs COMMAND and continues after a failure, so that one run shows every failure.
lane() {
  local name=$1 lane_start=$SECONDS word=ok
  shift
  echo "== $name"
  if "$@"; then n_passed=$((n_passed + 1)); else
    n_failed=$((n_failed + 1))
    word=FAILED
  fi
  lines+=("$(printf '%-12s %-6s %4d s' "$name" "$word" $((SECONDS - lane_start)))")
}

sanitize() {
  local flags=()
  [[ -t 1 ]] || flags=(-- --quiet)
  cmake --preset asan > build/configure-asan.log 2>&1 || {
    cat build/configure-asan.log
    return 1
  }
  cmake --build --preset asan -j "$(nproc)" --target elastify_base_tests "${flags[@]}" || return 1
  ctest --preset asan -R '^(base|io|model|data)/'
}

lane build scripts/setup.sh --tests
# The real model is 98 MB. If it cannot be fetched, the tests that use it skip by name.
scripts/fetch_model.sh || echo "the demo model could not be fetched: its tests skip"
((n_failed > 0)) || lane tests ctest --preset release "$@"
lane sanitizers sanitize
lane lint scripts/lint.sh --quick

echo "== summary ($((SECONDS - start)) s)"
printf '%s\n' "${lines[@]}"
tests/support/show_skips.sh
echo "lanes: $n_passed passed, $n_failed failed"
((n_failed == 0))
