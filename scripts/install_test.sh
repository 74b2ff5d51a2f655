#!/usr/bin/env bash
# Proves that the source distribution installs as a user would install it: pip, a compiler and the newest packages that it asks for,
# in clean environments of the oldest and the newest Python here that riffle supports, away from the checkout.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/pythons.sh"

sdist=$("$ROOT/scripts/sdist.sh" | tail -n 1) # "sdist.sh: dist/NAME"
sdist=$ROOT/${sdist#* }
all=$(pythons)
[ -n "$all" ] || die "there is no Python of 3.10 or newer with its headers"
oldest=$(head -n 1 <<<"$all")
newest=$(tail -n 1 <<<"$all")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tmp"
use_ccache
# Sources are hashed relative to where pip unpacks them, and these settings make the commands those of `make python`, so that
# ccache has the library's objects.
export CXX=c++ CCACHE_BASEDIR=$work TMPDIR=$work/tmp CMAKE_BUILD_PARALLEL_LEVEL=$JOBS
settings=(--config-settings=build-dir=build/python --config-settings=cmake.define.RIFFLE_WERROR=ON)
while read -r minor python; do
  say "installing $(basename "$sdist") with pip of Python 3.$minor"
  "$python" -m venv "$work/venv-$minor"
  "$work/venv-$minor/bin/python" -m pip install -q "${settings[@]}" "$sdist" </dev/null || die "it does not install with Python 3.$minor"
  # From elsewhere: the folder of the checkout must not be found first.
  (cd "$work" && "venv-$minor/bin/python" "$ROOT/python/tests/smoke.py") || die "what Python 3.$minor installed is wrong"
done < <(printf '%s\n' "$oldest" "$newest" | sort -u)
say "in order"
