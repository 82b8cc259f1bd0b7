#!/usr/bin/env bash
# Builds and tests the project against LibTorch 2.x: Debian 13's, in a root of its own. As root; about 20 minutes and
# 3 GB the first time, less later.
#   scripts/check_torch2.sh [ROOT] [CTEST_ARGUMENT...]     ROOT: where Debian 13 is kept; default /var/tmp/elastify-trixie
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=/var/tmp/elastify-trixie
if [[ ${1:-} == /* ]]; then
  root=$1
  shift
fi
((EUID == 0)) || {
  echo "check_torch2: error: only root can set up another Debian (debootstrap, chroot)" >&2
  exit 1
}
say() { echo "check_torch2: $*" >&2; }

if [[ ! -e $root/.complete ]]; then
  command -v debootstrap > /dev/null || apt-get install -y -qq --no-install-recommends debootstrap
  say "Debian 13 into $root"
  rm -rf "$root"
  debootstrap --variant=minbase trixie "$root" > "${TMPDIR:-/tmp}/debootstrap.log" 2>&1 || {
    tail -n 20 "${TMPDIR:-/tmp}/debootstrap.log" >&2
    exit 1
  }
  # Whatever way out this machine has, the other root takes, too.
  for file in /etc/resolv.conf /etc/apt/apt.conf.d/*proxy* /etc/environment; do
    [[ ! -e $file ]] || install -D "$file" "$root$file"
  done
  touch "$root/.complete"
fi

mkdir -p "$root/src" "$root/proc" "$root/ccache"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT

say "copying the sources"
git ls-files -co --exclude-standard -z | tar --null -T - -cf - --ignore-failed-read 2> /dev/null |
  tar -C "$root/src" -xf -
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CCACHE_DIR=/ccache \
  http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" bash -c "cd /src && $1"; }

say "packages"
inside "scripts/setup.sh --no-build && apt-get install -y -qq --no-install-recommends libopenmpi-dev openmpi-bin > /dev/null"
say "building"
inside "mkdir -p build && cmake --preset release > build/configure.log && cmake --build --preset release -- --quiet"
say "testing"
inside "ctest --preset release $*"
say "passed with LibTorch $(inside "dpkg-query -W -f '\${Version}' libtorch-dev")"
