#!/usr/bin/env bash
# From a bare Debian 12 to an elastic model: sets up, fetches a small model and some text, runs one recipe.
#   scripts/quickstart.sh [ARGUMENT...]     arguments for `elastify run`, e.g. --set recover.rank=16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
scripts/fetch_model.sh
scripts/fetch_text.sh
exec build/elastify run configs/smollm2_135m/quickstart.yaml "$@"
