#!/usr/bin/env bash
# Puts the source of Google Highway 1.2.0 in .deps/highway.
#
# Debian 12 packages Highway 1.0.3, which lacks the Zen 4 target and native bf16 dot products; Debian 13 has 1.2.0. Its
# source package is fetched through this machine's own apt configuration (mirror, proxy and keys included) and nothing
# of the system's apt state changes. Needs neither root nor the network once the tarball is in the cache.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/private_apt.sh"

version=1.2.0
suite=trixie
tarball=highway_$version.orig.tar.gz
sha256=7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
kept=$CACHE/$tarball
dest=$ROOT/.deps/highway

give_up() {
  warn "$*"
  warn "without .deps/highway, CMake uses an installed hwy of 1.2 or newer (libhwy-dev), else downloads Highway by FetchContent"
  exit 1
}

intact() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

fetch() {
  local apt=()
  have apt-get || give_up "no apt-get here"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/get"
  private_apt "$work" deb-src $suite || give_up "no Debian archive among this machine's apt sources"

  say "fetching the source package highway $version ($suite) through apt"
  (cd "$work/get" && "${apt[@]}" update && "${apt[@]}" source --download-only highway) >"$work/log" 2>&1 || {
    tail -n 15 "$work/log" >&2
    give_up "apt could not bring the source package"
  }
  [ -f "$work/get/$tarball" ] || give_up "$suite no longer holds $tarball, but another version"
  intact "$work/get/$tarball" || give_up "$tarball does not have the SHA-256 $sha256"
  mkdir -p "$CACHE"
  # Copy, then rename: a second run at the same time never sees half a file.
  cp "$work/get/$tarball" "$kept.$$" && mv "$kept.$$" "$kept"
}

lock .deps/highway
if [ "$(cat "$dest/.riffle-source" 2>/dev/null)" = "$sha256" ]; then
  say "Highway $version is in .deps/highway"
  exit 0
fi
intact "$kept" || fetch

say "unpacking Highway $version into .deps/highway"
mkdir -p "$ROOT/.deps"
fresh=$(mktemp -d "$ROOT/.deps/highway.XXXXXX")
tar -xzf "$kept" -C "$fresh" --strip-components=1 --no-same-owner
[ -f "$fresh/CMakeLists.txt" ] || die "unexpected layout inside $kept"
chmod 755 "$fresh"
echo "$sha256" >"$fresh/.riffle-source"
rm -rf "$dest"
mv "$fresh" "$dest"
