# shellcheck shell=bash
# Shared by the scripts beside it: where things are kept, and how they speak.
# To be sourced, after `set -euo pipefail`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Downloads worth keeping for the next clean clone.
CACHE=${RIFFLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/riffle}

say() { printf '%s\n' "${0##*/}: $*"; }
warn() { printf '%s\n' "${0##*/}: $*" >&2; }
die() {
  warn "$*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
JOBS=${JOBS:-$(nproc)}

# Compilations through ccache, if there is one, kept for other checkouts too: paths below the checkout are hashed relative
# to it. CMake reads CMAKE_CXX_COMPILER_LAUNCHER when it configures a build folder for the first time.
use_ccache() {
  if ! have ccache || [ -n "${CMAKE_CXX_COMPILER_LAUNCHER:-}" ]; then return 0; fi
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_DIR=${CCACHE_DIR:-$CACHE/ccache}
  export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1
}
