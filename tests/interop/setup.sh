#!/usr/bin/env bash
# Installs the stock runtimes of the interop tests and builds llama_oracle, llama_quantize and llama.cpp's own
# llama-bench against them.
#   tests/interop/setup.sh [OUTPUT_FOLDER]        default: build/interop
# Needs node >= 18, npm, git, a C++20 compiler, linux-x64 with glibc. Does nothing when all is in
# place; downloads about 100 MB otherwise. Exit code 77: this machine cannot run the prebuilt
# libraries, tests may skip.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$root/build/interop}
modules=$here/node_modules
bins=$modules/@node-llama-cpp/linux-x64/bins/linux-x64
bundle=$modules/node-llama-cpp/llama/gitRelease.bundle

fail() {
  echo "interop setup: $1" >&2
  exit "${2:-1}"
}

[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "only linux-x64 has a pinned prebuilt llama.cpp" 77
for tool in node npm git; do
  command -v "$tool" > /dev/null || fail "$tool is missing"
done
node_major=$(node -p 'process.versions.node.split(".")[0]')
((node_major >= 18)) || fail "node 18 or newer is needed, this is $(node --version)"

# `npm ci` insists on a lock entry for every optional package, and those are the prebuilt variants
# (CUDA, Vulkan, other machines: 700 MB) that we never want. `npm install` takes the same versions
# and checks the same hashes, but lets them be absent.
pins=$(cat "$here/package.json" "$here/package-lock.json" | sha256sum | cut -d ' ' -f 1)
stamp=$modules/.elastify-pins
if [[ ! -f $stamp || $(< "$stamp") != "$pins" ]]; then
  echo "interop setup: installing node packages" >&2
  rm -f "$stamp"
  (cd "$here" && npm install --ignore-scripts --omit=optional --no-save --no-audit --no-fund \
    --loglevel=error > /dev/null)
  echo "$pins" > "$stamp"
fi
[[ -f $bundle ]] || fail "node-llama-cpp does not carry llama.cpp's sources: $bundle"
libllama=$(find "$bins" -name 'libllama.v*.so' -print -quit)
libggml=$(find "$bins" -name 'libggml.v*.so' -print -quit)
[[ -n $libllama && -n $libggml ]] || fail "no libllama in $bins"

# The headers must be those of the libraries, so they come out of the bundle shipped with them.
mkdir -p "$out"
headers=$out/llama-headers
bench=$out/llama-bench
if [[ ! -f $headers/imatrix-loader.h || ! -x $bench || $(< "$headers/.pins") != "$pins" ]]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  git clone --quiet --bare "$bundle" "$scratch/llama.git"
  rm -rf "$headers"
  mkdir -p "$headers"
  for folder in include ggml/include; do
    git -C "$scratch/llama.git" archive "HEAD:$folder" | tar -x -C "$headers"
  done
  git -C "$scratch/llama.git" archive HEAD:common imatrix-loader.h | tar -x -C "$headers"
  git -C "$scratch/llama.git" archive HEAD include ggml/include common vendor tools/llama-bench |
    tar -x -C "$scratch"
  "${CXX:-g++}" -std=c++17 -O1 -I "$scratch/include" -I "$scratch/ggml/include" -I "$scratch/common" \
    -I "$scratch/vendor" "$scratch"/tools/llama-bench/{llama-bench,main}.cpp -o "$bench" \
    "$bins/libllama-common.so" "$libllama" "$libggml" "$bins/libggml-base.so" -ldl "-Wl,-rpath,$bins"
  ln -sf "$bins"/libggml-cpu-*.so "$out" # it looks for backends beside itself
  echo "$pins" > "$headers/.pins"
fi

for tool in llama_oracle llama_quantize; do
  built=$out/$tool
  if [[ ! -x $built || $here/$tool.cpp -nt $built || $headers/.pins -nt $built ]]; then
    "${CXX:-g++}" -std=c++20 -O2 -Wall -Wextra -I "$headers" "$here/$tool.cpp" -o "$built.tmp-$$" \
      "$libllama" "$libggml" "$bins/libggml-base.so" "$bins/libllama-common.so" -ldl "-Wl,-rpath,$bins"
    mv "$built.tmp-$$" "$built"
  fi
done
echo "$out/llama_oracle"
