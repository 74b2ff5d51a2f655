# shellcheck shell=bash
# Shared by the scripts beside it: where things are kept, and how they speak.
# To be sourced, after `set -euo pipefail`.

unset CDPATH # with it, cd prints where it went
# HOME is not set without a login, in containers and services: take it from the user database.
if [ -z "${HOME:-}" ]; then
  unset HOME
  HOME=~
  export HOME
fi
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

# One run of a kind at a time in this checkout: `lock NAME` waits until the last one has ended, and says so. Commands that
# leave processes behind get `9>&-`, so that those do not hold it.
lock() {
  if ! have flock; then return 0; fi
  mkdir -p "$ROOT/build"
  exec 9>"$ROOT/build/.lock-${1//\//-}"
  if ! flock -n 9; then
    warn "another run is at work on $1 in this checkout: waiting until it has ended"
    flock 9
  fi
}

# Compilations through ccache, if there is one, kept for other checkouts too: paths below the checkout are hashed relative
# to it. CMake reads CMAKE_CXX_COMPILER_LAUNCHER when it configures a build folder for the first time.
use_ccache() {
  if ! have ccache || [ -n "${CMAKE_CXX_COMPILER_LAUNCHER:-}" ]; then return 0; fi
  local dir=${CCACHE_DIR:-$CACHE/ccache}
  # ccache takes a $ in its settings for a variable.
  case $dir in *\$*) return 0 ;; esac
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_DIR=$dir
  case $ROOT in *\$*) ;; *) export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1 ;; esac
}
