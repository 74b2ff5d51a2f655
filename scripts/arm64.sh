#!/usr/bin/env bash
# Builds the library and its C++ tests for 64-bit ARM, here, and runs them under qemu-user.
#
#   scripts/arm64.sh                        every test that can run under qemu, on NEON
#   scripts/arm64.sh quick                  the tests that take a few minutes in all, on NEON: builds no more than they need
#   scripts/arm64.sh bf16                   tests of what NEON_BF16 has its own code for, on NEON and NEON_BF16: by clang 19
#   scripts/arm64.sh [options of ctest]     scripts/arm64.sh -R attention_invariance
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# Builds the programs that tests/CMakeLists.txt gives the label $2, with preset $1, and runs them.
labelled() {
  "$ROOT/scripts/arm64_libraries.sh"
  "$ROOT/scripts/build.sh" "$1" --target "$2_tests"
  cd "$ROOT"
  ctest --preset "$1" --parallel "$JOBS" -L "^$2\$"
}

case ${1:-} in
  quick)
    "$ROOT/scripts/setup.sh" arm64
    labelled arm64 arm64_quick
    ;;
  bf16)
    "$ROOT/scripts/setup.sh" arm64-clang
    labelled arm64-clang arm64_bf16
    ;;
  *)
    "$ROOT/scripts/setup.sh" arm64
    "$ROOT/scripts/arm64_libraries.sh"
    if [ $# = 0 ]; then "$ROOT/scripts/model.sh"; fi # all tests include those of the model
    exec "$ROOT/scripts/ctest.sh" arm64 "$@"
    ;;
esac
