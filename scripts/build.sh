#!/usr/bin/env bash
# Configures a preset of CMakePresets.json and builds it in build/PRESET.
#
#   scripts/build.sh PRESET [options of cmake --build]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

preset=${1:?usage: build.sh PRESET [options of cmake --build]}
shift
# CMake has other ways to find Highway, and says so if none works.
[ -f "$ROOT/.deps/highway/CMakeLists.txt" ] || "$ROOT/scripts/highway.sh" || true
use_ccache
cd "$ROOT"
lock "build/$preset"
# Ninja configures again by itself when a CMakeLists.txt changes, but does not know of the presets.
if ! [ "build/$preset/build.ninja" -nt CMakePresets.json ]; then cmake --preset "$preset" 9>&-; fi
cmake --build "build/$preset" --parallel "$JOBS" "$@" 9>&-
