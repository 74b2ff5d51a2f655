#!/usr/bin/env bash
# Runs a command of this checkout inside another Debian release: in a chroot that debootstrap fills. Needs root.
#
#   scripts/in_debian.sh trixie make test-cpp
#   scripts/in_debian.sh trixie scripts/setup.sh test      once, before
#   CXX=clang++ scripts/in_debian.sh trixie scripts/build.sh release
#
# The folder, CACHE/debian/RELEASE, and what is built in it stay for the next time. Packages come from this machine's own Debian archive;
# downloads that the cache of this machine has are copied. Nothing outside of the folder changes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/private_apt.sh"

release=${1:?usage: in_debian.sh RELEASE COMMAND...}
shift
[ $# -gt 0 ] || die "usage: in_debian.sh RELEASE COMMAND..."
[ "$(id -u)" = 0 ] || die "needs root, to change root to another Debian"
folder=$CACHE/debian/$release
mkdir -p "$CACHE/debian"
exec 9>"$CACHE/debian/.lock-$release" # one run at a time
flock 9

if [ ! -f "$folder/.complete" ]; then
  have debootstrap || die "needs debootstrap: apt-get install debootstrap"
  source=$(debian_source)
  [ -n "$source" ] || die "no Debian archive among this machine's apt sources"
  uri=${source%%$'\t'*} key=${source#*$'\t'}
  [ "$key" != - ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
  say "filling $folder with Debian $release by debootstrap (300 MB, once)"
  rm -rf "$folder"
  # A release that this machine's debootstrap does not know by name is made like sid.
  script=/usr/share/debootstrap/scripts/$release
  [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
  debootstrap --variant=minbase --include=ca-certificates,git,make --keyring="$key" "$release" "$folder" "$uri" "$script" \
    >"$CACHE/debian/$release.log" 2>&1 9>&- || {
    tail -n 20 "$CACHE/debian/$release.log" >&2
    die "debootstrap failed: $CACHE/debian/$release.log"
  }
  touch "$folder/.complete"
fi

# How this machine reaches the network.
cp -L /etc/resolv.conf /etc/hosts "$folder/etc/"
if [ -d /etc/apt/apt.conf.d ]; then cp -R /etc/apt/apt.conf.d/*proxy* "$folder/etc/apt/apt.conf.d/" 2>/dev/null || true; fi
if [ -d /usr/local/share/ca-certificates ]; then
  cp -RL /usr/local/share/ca-certificates/. "$folder/usr/local/share/ca-certificates/"
  chroot "$folder" update-ca-certificates >/dev/null 2>&1 || true
fi

# The checkout as it is, without what is built or ignored. Only files that differ are copied, so that a second run builds what has
# changed. They get the present time: an edit made during an earlier run would otherwise be older than the object that lacks it.
inside=/riffle
mkdir -p "$folder$inside" "$folder/cache"
cd "$ROOT"
files=$folder/.files
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done | sort -z >"$files.new"
# Removes the files of the last time that no longer exist.
if [ -f "$files" ]; then comm -z -23 "$files" "$files.new" | (cd "$folder$inside" && xargs -0 -r rm -f); fi
mv "$files.new" "$files"
while IFS= read -r -d '' file; do
  cmp -s "$file" "$folder$inside/$file" || printf '%s\0' "$file"
done <"$files" | tar -c --null -T - | tar -x -m -C "$folder$inside"
for kept in "$CACHE"/highway_*.tar.gz "$CACHE/models"; do
  if [ -e "$kept" ]; then cp -Ru "$kept" "$folder/cache/"; fi
done

# Programs ask /proc and /dev; both are taken away again.
mounted=()
# shellcheck disable=SC2317  # called by trap
leave() { for place in "${mounted[@]}"; do umount -R -l "$place" 2>/dev/null || true; done; }
trap leave EXIT
for place in proc dev; do
  if mount --rbind "/$place" "$folder/$place" 2>/dev/null; then
    mount --make-rslave "$folder/$place" 2>/dev/null || true
    mounted+=("$folder/$place")
  fi
done

pass=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
  RIFFLE_CACHE=/cache "JOBS=$JOBS")
for name in CC CXX CI http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY RIFFLE_TARGET PIP_INDEX_URL; do
  if [ -n "${!name:-}" ]; then pass+=("$name=${!name}"); fi
done
status=0
# shellcheck disable=SC2016  # expanded inside
chroot "$folder" env -i "${pass[@]}" bash -c 'cd "$1" && shift && exec "$@"' in_debian "$inside" "$@" 9>&- || status=$?
exit $status
