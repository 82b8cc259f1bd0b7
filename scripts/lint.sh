#!/usr/bin/env bash
# Checks all that needs no running program, one line per check. scripts/setup.sh --tests installs the tools.
#   scripts/lint.sh [BUILD_FOLDER]     a configured one; default: build
#   scripts/lint.sh --quick            without the slow checks (headers alone, clang-tidy), as scripts/test.sh does
#   scripts/lint.sh --fix              formats, checks nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

n_passed=0
n_failed=0
# check NAME COMMAND...: the command's output is shown only when it fails.
check() {
  local name=$1 output start=$SECONDS
  shift
  if output=$("$@" 2>&1); then
    n_passed=$((n_passed + 1))
    echo "lint: $name: ok ($((SECONDS - start)) s)"
  else
    n_failed=$((n_failed + 1))
    printf '%s\n' "$output"
    echo "lint: $name: FAILED"
  fi
}

# Our files with one of these extensions, NUL-separated; nothing installed or built.
ours() {
  local extension
  for extension in "$@"; do
    find scripts lib cli include examples tests -name node_modules -prune -o -type f -name "*.$extension" -print0
  done | sort -z
}

format() {
  local wrong
  wrong=$(ours h c cpp | xargs -0 -r clang-format-14 --dry-run 2>&1 | grep -o '^[^ ]*:[0-9]*:[0-9]*: ' |
    cut -d : -f 1 | uniq -c || true)
  [[ -z $wrong ]] || {
    printf '%s\n' "$wrong" "places that scripts/lint.sh --fix would change"
    return 1
  }
}

includes() { python3 scripts/check_includes.py; }

includes_test() { python3 tests/scripts/check_includes_test.py; }

# Each header alone. Those that include LibTorch take too long; the build has them in many orders.
headers() {
  local -a flags
  mapfile -t flags < <(grep -o 'DELASTIFY_[A-Z_]*' "$build/compile_commands.json" | sort -u | sed 's/.*/-&=""/')
  python3 scripts/check_includes.py --light | grep '\.h$' |
    xargs -r -P 2 -I {} g++ -std=c++20 -fsyntax-only -Wall -Wextra -Werror -I lib -I . -I tests "${flags[@]}" \
      -include {} -x c++ /dev/null
}

shell() { { ours sh bash; printf '.ci/run\0'; } | xargs -0 shellcheck -x; }

python() {
  ours py | xargs -0 -r python3 -c 'import ast, sys; [ast.parse(open(f).read(), f) for f in sys.argv[1:]]'
}

# Files that some target compiles without LibTorch, whose headers take a minute each (and whose precompiled one
# clang cannot read). The warnings left out are GCC's own, and what GCC's stable_sort calls.
tidy() {
  local compiled
  compiled=$(python3 -c 'import json, os, sys
for entry in json.load(open(sys.argv[1])):
  if "cmake_pch" not in entry["command"]: print(os.path.relpath(entry["file"]))' "$build/compile_commands.json")
  python3 scripts/check_includes.py --light | grep -E '^(lib|cli)/.*\.cpp$' | grep -Fx "$compiled" |
    xargs -r -P 2 -n 1 clang-tidy-19 --quiet --extra-arg=-Wno-unknown-warning-option \
      --extra-arg=-Wno-deprecated-declarations -p "$build"
}

if [[ ${1:-} == --fix ]]; then
  ours h c cpp | xargs -0 -r clang-format-14 -i
  exit
fi
quick=false
[[ ${1:-} != --quick ]] || {
  quick=true
  shift
}
build=${1:-build}

check "format (clang-format)" format
check "includes (who may include whom)" includes
check "the check of includes itself" includes_test
check "shell (shellcheck)" shell
check "python parses" python
if ! $quick; then
  check "headers compile alone" headers
  check "mistakes (clang-tidy)" tidy
fi
echo "lint: $n_passed ok, $n_failed failed"
((n_failed == 0))
