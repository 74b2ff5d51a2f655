#!/usr/bin/env bash
# Builds the Python package from this checkout and installs it into .venv (made by venv.sh). Incremental, in build/python.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

python=$ROOT/.venv/bin/python
[ -x "$python" ] || die "there is no .venv yet: run scripts/venv.sh"
[ -f "$ROOT/.deps/highway/CMakeLists.txt" ] || "$ROOT/scripts/highway.sh" || true
use_ccache
cd "$ROOT"
lock build/python
# Warnings as errors, as in the presets: the library's objects then come out of ccache.
CMAKE_BUILD_PARALLEL_LEVEL=$JOBS "$python" -m pip install --no-build-isolation --no-deps \
  --config-settings=build-dir=build/python --config-settings=cmake.define.RIFFLE_WERROR=ON .
# From elsewhere, so that the installed package is what is found.
(cd / && "$python" -c 'import riffle; print("python_package.sh: .venv has riffle", riffle.__version__)')
