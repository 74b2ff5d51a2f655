#!/usr/bin/env bash
# Builds a preset and runs its tests.
#
#   scripts/ctest.sh PRESET [options of ctest]        scripts/ctest.sh release -L topk
set -euo pipefail
. "$(dirname "$0")/lib.sh"

preset=${1:?usage: ctest.sh PRESET [options of ctest]}
shift
targets=()
if [ "$preset" = tsan ]; then targets=(--target concurrency_tests); fi
"$ROOT/scripts/build.sh" "$preset" "${targets[@]}"
cd "$ROOT"
run=()
# The ThreadSanitizer of older compilers cannot place its shadow memory where Linux randomises addresses by 32 bits.
if [ "$preset" = tsan ] && setarch -R true 2>/dev/null; then run=(setarch -R); fi
"${run[@]}" ctest --preset "$preset" --parallel "$JOBS" "$@"
