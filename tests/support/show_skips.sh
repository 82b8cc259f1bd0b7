#!/usr/bin/env bash
# Says which test cases skipped in the last run of ctest, and why; nothing where none did.
#   tests/support/show_skips.sh [FILE]     lines of a reason, a tab and a test case; default: build/Testing/skips.txt
set -euo pipefail
file=${1:-$(dirname "${BASH_SOURCE[0]}")/../../build/Testing/skips.txt}

[[ -s $file ]] || exit 0
echo "skipped: $(sort -u "$file" | wc -l) test cases"
sort -u "$file" | awk -F '\t' '$1 != reason { reason = $1; print "  " reason ":" } { print "    " $2 }'
