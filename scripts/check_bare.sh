#!/usr/bin/env bash
# Runs the README's two commands, as they are written there, on the committed tree in a bare Debian 12 each: nothing is
# installed before, and neither sees what the other installed. As root; about 6 GB while it runs.
#   scripts/check_bare.sh [--ccache FOLDER] [--keep] [quickstart] [tests]      both when none is named
#     --ccache FOLDER   keep a compiler cache in FOLDER from run to run. The cache looks at all that the compiler reads:
#                       a file that is missing is still missed. The times are then not those of a first build.
#     --keep            leave the systems in /var/tmp/elastify-bare-*, to look into; so does a command that fails or is interrupted
# The bare system is kept in /var/tmp/elastify-bookworm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian_root.bash
source scripts/debian_root.bash

declare -A scripts=([quickstart]=scripts/quickstart.sh [tests]=scripts/test.sh)
bare=/var/tmp/elastify-bookworm
ccache=
keep=no
names=()
while (($# > 0)); do
  case $1 in
    quickstart | tests) names+=("$1") ;;
    --ccache)
      ccache=$(realpath -m "${2:?--ccache needs a folder}")
      shift
      ;;
    --keep) keep=yes ;;
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      say "error: unknown argument '$1' (quickstart, tests, --ccache FOLDER, --keep)"
      exit 2
      ;;
  esac
  shift
done
((${#names[@]} > 0)) || names=(quickstart tests)

# readme_command SCRIPT: the README's line that begins with it, without the remark behind it.
readme_command() {
  git show "$commit:README.md" | grep -m 1 "^$1" | sed 's/ *#.*//' || fail "README.md has no line that begins with $1"
}

megabytes() { du -sxm "$1" | cut -f 1; }

# check NAME: runs one command; sets $status, its exit status, and $line, a summary.
check() {
  local name=$1 root=/var/tmp/elastify-bare-$1 command before word=ok
  status=0
  command=$(readme_command "${scripts[$name]}")
  rm -rf "$root"
  cp -a --reflink=auto "$bare" "$root"
  before=$(megabytes "$root")
  mkdir "$root/root/elastify"
  git archive "$commit" | tar -x -C "$root/root/elastify"

  say "$name: $command"
  local TIMEFORMAT='%0R %0U %0S' times=$root/.times wall user system
  local -a mount=()
  [[ -z $ccache ]] || mount=("$ccache" /root/.cache/ccache)
  { time in_debian_root "$root" "cd ~/elastify && $command" "${mount[@]}" 2>&3; } 3>&2 2> "$times" || status=$?
  read -r wall user system < "$times"
  ((status == 0)) || word=FAILED
  line=$(printf '%-10s %-6s %3d min %02d s (%d min of processor time), disk %d MB before and %d MB after' \
    "$name" "$word" $((wall / 60)) $((wall % 60)) $(((user + system + 30) / 60)) "$before" "$(megabytes "$root")")
  if [[ $keep == yes ]] || ((status != 0)); then
    line+="; left in $root"
  else
    rm -rf "$root"
  fi
}

commit=$(git rev-parse HEAD)  # later commits are not checked
[[ -z $(git status --porcelain) ]] || say "note: changes that are not committed are not checked"
make_debian_root bookworm "$bare"
n_passed=0
n_failed=0
lines=()
for name in "${names[@]}"; do
  check "$name"
  if ((status == 0)); then n_passed=$((n_passed + 1)); else n_failed=$((n_failed + 1)); fi
  lines+=("$line")
  say "$line"
done
say "$(git log -1 --format='%h %s' "$commit")"
printf '%s\n' "${lines[@]}"
echo "commands: $n_passed passed, $n_failed failed"
((n_failed == 0))
