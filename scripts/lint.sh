#!/usr/bin/env bash
# Checks everything that does not need the program to run; prints one line per check.
#   scripts/lint.sh [BUILD_FOLDER]     default: build (configured, for clang-tidy)
# A tool that is not installed fails its check: scripts/setup.sh --tests installs all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build}
export build

n_passed=0
n_failed=0
# check NAME COMMAND...: the output is shown only when it fails.
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

# Files by extension, NUL-separated; nothing that was installed or built.
ours() {
  find lib cli tests -name node_modules -prune -o -type f -name "*.$1" -print0 | sort -z
}

format() {
  { ours h; ours cpp; } | xargs -0 -r clang-format-14 --dry-run -Werror
}

includes() {
  python3 scripts/check_includes.py
}

# Each header alone in an otherwise empty file. The ones that include LibTorch are left to the build.
headers() {
  local flags
  flags=$(pkg-config --cflags fmt libpcre2-8 libutf8proc yaml-cpp nlohmann_json)
  # shellcheck disable=SC2086,SC2016  # the flags are words; $1 is the inner shell's
  python3 scripts/check_includes.py --light | grep '\.h$' |
    xargs -r -P 2 -I {} g++ -std=c++20 -fsyntax-only -Wall -Wextra -Werror -Wno-pragma-once-outside-header \
      -I lib -I . -I tests -I "$build/generated" $flags -x c++ {}
}

scripts() {
  { find scripts tests -name node_modules -prune -o -type f \( -name '*.sh' -o -name '*.bash' \) -print0
    printf '.ci/run\0'; } | xargs -0 shellcheck -x
}

python() {
  find scripts tests -name node_modules -prune -o -type f -name '*.py' -print0 |
    xargs -0 -r python3 -c 'import ast, sys; [ast.parse(open(f).read(), f) for f in sys.argv[1:]]'
}

# Files that no target compiles have no flags and are skipped. A file that passed is not looked at again until what
# the compiler sees of it, or the list of checks, is another: one run of all takes minutes.
tidy_one() {
  local file=$1 stamps=$build/tidy seen stamp
  seen=$(tidy_key "$file") || return 0
  stamp=$stamps/$(sha256sum <<< "$file" | cut -c 1-16)
  [[ -f $stamp && $(< "$stamp") == "$seen" ]] && return 0
  clang-tidy-14 --quiet -p "$build" "$file" 2> "$stamp.log" || {
    grep -E 'error:' "$stamp.log" || true
    return 1
  }
  echo "$seen" > "$stamp"
}

echo "placeholder"
