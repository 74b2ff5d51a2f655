#!/usr/bin/env bash
# Puts into .deps/arm64 the libraries of 64-bit ARM that a cross build links beside those of the cross compiler: utf8proc, which the
# engine needs. They come from Debian's archive through this machine's own apt configuration; nothing of the system changes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/private_apt.sh"

suite=bookworm # whichever release this is: the library is linked statically
dest=$ROOT/.deps/arm64
library=usr/lib/aarch64-linux-gnu/libutf8proc.a

lock .deps/arm64
[ ! -f "$dest/$library" ] || exit 0
if ! have apt-get || ! have dpkg-deb; then die "libraries of ARM are fetched by apt-get and unpacked by dpkg-deb, which are not here"; fi
apt=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
private_apt "$work" deb $suite || die "no Debian archive among this machine's apt sources"
apt+=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64)
say "fetching libutf8proc-dev of $suite for arm64 through apt"
mkdir "$work/get" "$work/root"
(cd "$work/get" && "${apt[@]}" update && "${apt[@]}" download libutf8proc-dev:arm64) >"$work/log" 2>&1 9>&- || {
  tail -n 15 "$work/log" >&2
  die "apt could not bring libutf8proc-dev"
}
dpkg-deb -x "$work"/get/*.deb "$work/root"
[ -f "$work/root/$library" ] || die "the package libutf8proc-dev has no $library"
mkdir -p "$dest"
cp -R "$work/root/." "$dest"
