#!/usr/bin/env bash
# Installs what elastify needs (Debian 12 or newer) and builds build/elastify. Running it again is cheap.
#   scripts/setup.sh [--tests] [--no-build]
#     --tests      also the tools of scripts/test.sh and the stock runtimes, and builds everything
#     --no-build   packages only
# Another LibTorch than Debian's: CMAKE_PREFIX_PATH=/path/to/libtorch scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/say.bash
source scripts/say.bash

# libtorch-dev alone would leave the reference BLAS in place: some 50 times slower.
packages=(libtorch-dev libopenblas0-openmp libhdf5-dev libcli11-dev doctest-dev libyaml-cpp-dev
  nlohmann-json3-dev libfmt-dev libspdlog-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev libssl-dev
  g++ cmake ninja-build ccache mold pkg-config python3 python3-pip ca-certificates)
test_packages=(libopenmpi-dev openmpi-bin clang-format-14 clang-tidy-19 shellcheck git)

tests=no
build=yes
for argument in "$@"; do
  case $argument in
    --tests) tests=yes ;;
    --no-build) build=no ;;
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      say "error: unknown argument '$argument' (--tests, --no-build)"
      exit 2
      ;;
  esac
done

if [[ $tests == yes ]]; then
  packages+=("${test_packages[@]}")
  # Only where they are missing: a node from elsewhere brings its own npm, and Debian's would clash with it.
  command -v node > /dev/null || packages+=(nodejs)
  command -v npm > /dev/null || packages+=(npm)
fi

own_torch=
IFS=: read -ra prefixes <<< "${CMAKE_PREFIX_PATH:-}"
for prefix in "${prefixes[@]}"; do
  [[ -f $prefix/share/cmake/Torch/TorchConfig.cmake ]] && own_torch=$prefix
done
if [[ -n $own_torch ]]; then
  say "LibTorch: $own_torch"
  packages=("${packages[@]/#libtorch-dev/}")
fi

missing=()
for package in "${packages[@]}"; do
  [[ -z $package ]] && continue
  status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2> /dev/null || true)
  [[ $status == ?i* ]] || missing+=("$package")
done

if ((${#missing[@]} == 0)); then
  say "all packages are installed"
else
  command -v apt-get > /dev/null || fail "this is not a Debian system, so packages are yours to install" \
    "needed are the equivalents of: ${missing[*]}" \
    "then: cmake --preset release && cmake --build --preset release --target elastify"
  root=()
  if ((EUID != 0)); then
    command -v sudo > /dev/null || fail "packages are missing and this is neither root nor a machine with sudo" \
      "as root: apt-get install --no-install-recommends ${missing[*]}"
    root=(sudo)
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  start=$SECONDS
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! {
    "${root[@]}" apt-get update -qq &&
      "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"
  } > "$log" 2>&1 < /dev/null; then
    tail -n 20 "$log" >&2
    fail "apt-get could not install the packages" \
      "they are named as in Debian 12; where another release lacks one, install its equivalent by hand"
  fi
  say "the packages are installed ($((SECONDS - start)) s)"
fi

# Debian's LibTorch calls whatever this resolves to.
blas_link=/usr/lib/$(g++ -print-multiarch)/libblas.so.3
blas=$(readlink -f "$blas_link" || true)
if [[ -z $own_torch && $blas == */blas/libblas.so* ]]; then
  say "WARNING: libblas.so.3 is the reference BLAS ($blas): everything will be some 50 times slower"
  say "         update-alternatives --auto libblas.so.3-$(g++ -print-multiarch)"
fi

if [[ $tests == yes ]]; then
  status=0
  tests/interop/setup.sh build/interop > /dev/null || status=$?
  if ((status == 77)); then
    say "no stock runtime for this machine: the interop tests will be skipped"
  elif ((status != 0)); then
    fail "tests/interop/setup.sh failed"
  fi
fi

[[ $build == yes ]] || exit 0

# A file that includes LibTorch takes 1 GB to compile.
memory_mb=$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)
jobs=$(nproc)
((jobs * 1200 <= memory_mb)) || jobs=$((memory_mb / 1200))
((jobs >= 1)) || jobs=1

target=(--target elastify)
[[ $tests == no ]] || target=()
quiet=()
[[ -t 1 ]] || quiet=(-- --quiet)
export CCACHE_BASEDIR=$PWD  # the same cache for every clone
say "building (preset release, $jobs jobs)"
start=$SECONDS
mkdir -p build
if ! cmake --preset release > build/configure.log 2>&1; then
  cat build/configure.log >&2
  fail "cmake could not configure" "where packages have come or gone since the last time: rm -r build, and again"
fi
grep -A 3 'CMake Warning.*Dependencies' build/configure.log >&2 || true
cmake --build --preset release -j "$jobs" "${target[@]}" "${quiet[@]}" >&2
say "build/elastify is ready ($((SECONDS - start)) s)"
