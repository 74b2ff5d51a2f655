#!/usr/bin/env bash
# Fetches an unmodified llama.cpp to test with: Debian's packages of the unstable release (programs, benchmarks, llama.cpp's own tests)
# and the libraries that they need, unpacked into a folder of the cache. They run from there, on whatever this machine is, by their own
# loader: scripts/llama_run.sh.
#
#   scripts/llama_host.sh           fetch it, unless it is there already
#   scripts/llama_host.sh --path    print its folder and nothing else
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/private_apt.sh"

root=$CACHE/llama.cpp
if [ "${1:-}" = --path ]; then
  echo "$root"
  exit 0
fi

if ! have apt-get || ! have dpkg-deb; then die "llama.cpp is fetched by apt-get and unpacked by dpkg-deb, which are not here"; fi
mkdir -p "$CACHE"
exec 9>"$CACHE/.llama.cpp.lock" # one fetch at a time
flock 9
packages=(llama.cpp-tools llama.cpp-tools-extra llama.cpp-examples llama.cpp-tests)
# A folder of an earlier fetch may lack packages that were added since.
if [ "$(cat "$root/packages" 2>/dev/null)" = "${packages[*]}" ]; then
  say "llama.cpp is there: $root"
  exit 0
fi

apt=()
work=$CACHE/.llama.cpp.fetch
rm -rf "$work"
mkdir -p "$work/root"
private_apt "$work" deb unstable || die "no Debian archive among this machine's apt sources"
# As if nothing were installed, so that all libraries come along.
: >"$work/status"
apt+=(-o "Dir::State::status=$work/status" -o APT::Install-Recommends=false)

say "fetching llama.cpp of Debian unstable through apt (some 20 MB, once)"
{ "${apt[@]}" update && "${apt[@]}" -y --download-only install "${packages[@]}"; } >"$work/log" 2>&1 9>&- || {
  tail -n 15 "$work/log" >&2
  die "apt could not bring llama.cpp"
}
for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
[ -x "$work/root/usr/bin/llama-bench" ] || die "the package llama.cpp-tools has no llama-bench"
echo "${packages[*]}" >"$work/root/packages"
rm -rf "$root"
mv "$work/root" "$root"
rm -rf "$work"
say "done in $SECONDS s: $root"
