#!/usr/bin/env bash
# Builds the library and its C++ tests for 64-bit ARM, here, and runs them under qemu-user on NEON.
#
#   scripts/arm64.sh                        every test that can run under qemu
#   scripts/arm64.sh -L arm64_quick         those that `make test-arm64-quick` runs: a few minutes
#   scripts/arm64.sh [options of ctest]     scripts/arm64.sh -R attention_invariance
set -euo pipefail
. "$(dirname "$0")/lib.sh"

"$ROOT/scripts/setup.sh" arm64
"$ROOT/scripts/arm64_libraries.sh"
if [ $# = 0 ]; then "$ROOT/scripts/model.sh"; fi # its tests are among all
exec "$ROOT/scripts/ctest.sh" arm64 "$@"
