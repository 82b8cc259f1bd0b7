#!/usr/bin/env bash
# Builds and tests the project against LibTorch 2.x: Debian 13's, in a root of its own. As root; about 20 minutes and
# 3 GB the first time, less later.
#   scripts/check_torch2.sh [ROOT] [CTEST_ARGUMENT...]     ROOT: where Debian 13 is kept; default /var/tmp/elastify-trixie
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian_root.bash
source scripts/debian_root.bash

root=/var/tmp/elastify-trixie
if [[ ${1:-} == /* ]]; then
  root=$1
  shift
fi
make_debian_root trixie "$root"
mkdir -p "$root/src"

say "copying the sources"
git ls-files -co --exclude-standard -z | tar --null -T - -cf - --ignore-failed-read 2> /dev/null |
  tar -C "$root/src" -xf -
inside() { in_debian_root "$root" "export LANG=C.UTF-8 CCACHE_DIR=/ccache && cd /src && $1"; }

say "packages"
inside "scripts/setup.sh --no-build && apt-get install -y -qq --no-install-recommends libopenmpi-dev openmpi-bin > /dev/null"
say "building"
inside "mkdir -p build && cmake --preset release > build/configure.log && cmake --build --preset release -- --quiet"
say "testing"
inside "ctest --preset release $*"
say "passed with LibTorch $(inside "dpkg-query -W -f '\${Version}' libtorch-dev")"
