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
