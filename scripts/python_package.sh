#!/usr/bin/env bash
# Builds the Python package from this checkout and installs it into .venv (made by venv.sh). Incremental, in build/python.
#
#   scripts/python_package.sh           into .venv
#   scripts/python_package.sh vllm      into .venv-vllm, which venv.sh made with the same Python; .venv builds it
set -euo pipefail
. "$(dirname "$0")/lib.sh"

python=$ROOT/.venv/bin/python
into=$ROOT/.venv${1:+-$1}
[ -x "$python" ] || die "there is no .venv yet: run scripts/venv.sh"
[ -x "$into/bin/python" ] || die "there is no ${into##*/} yet: run scripts/venv.sh ${1:-}"
[ -f "$ROOT/.deps/highway/CMakeLists.txt" ] || "$ROOT/scripts/highway.sh" || true
use_ccache
cd "$ROOT"
lock build/python
# The compiler's name and warnings as in the presets: the library's objects then come out of ccache. Without CXX, the compiler is
# that which built Python.
export CXX=${CXX:-c++}
wheels=$ROOT/build/wheel-${into##*/}
rm -rf "$wheels"
CMAKE_BUILD_PARALLEL_LEVEL=$JOBS "$python" -m pip wheel -q --no-build-isolation --no-deps -w "$wheels" \
  --config-settings=build-dir=build/python --config-settings=cmake.define.RIFFLE_WERROR=ON .
"$into/bin/python" -m pip install -q --no-deps --force-reinstall "$wheels"/*.whl
# From another folder, so that the installed package is found and not the sources.
(cd / && "$into/bin/python" -c 'import riffle; print("python_package.sh: '"${into##*/}"' has riffle", riffle.__version__)')
