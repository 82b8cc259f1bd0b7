# How scripts speak. To be sourced, not run.
# shellcheck shell=bash

program=${0##*/}
program=${program%.sh}

# say MESSAGE: on stderr, after the script's name.
say() { echo "$program: $*" >&2; }

# fail MESSAGE [HINT...]: says what is wrong, a hint a line, and exits with 1.
fail() {
  say "error: $1"
  shift
  local line
  for line in "$@"; do echo "  $line" >&2; done
  exit 1
}
