#!/usr/bin/env bash
# Installs a wheel for 64-bit ARM beside a Python of that processor and runs a program with it here, under qemu-user:
#
#   scripts/arm64_python.sh dist/wheels/NAME-abi3-NAME_aarch64.whl python/tests/smoke.py
#
# The Python is Debian 13's, unpacked into a folder of the cache through this machine's own apt; NumPy and ml_dtypes are the index's
# wheels for it. Nothing of the system changes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/private_apt.sh"

wheel=${1:?usage: arm64_python.sh WHEEL PROGRAM}
program=${2:?usage: arm64_python.sh WHEEL PROGRAM}
version=3.13
root=$CACHE/arm64-python$version
python=$root/usr/bin/python$version
have qemu-aarch64 || die "needs qemu-user: run scripts/setup.sh arm64"

mkdir -p "$CACHE"
exec 9>"$CACHE/.arm64-python.lock" # one fetch at a time
flock 9
if [ ! -x "$python" ]; then
  if ! have apt-get || ! have dpkg-deb; then die "Python for ARM is fetched by apt-get and unpacked by dpkg-deb, which are not here"; fi
  apt=()
  work=$CACHE/.arm64-python.fetch
  rm -rf "$work"
  mkdir -p "$work/root"
  private_apt "$work" deb trixie || die "no Debian archive among this machine's apt sources"
  # As if nothing were installed, so that all libraries come along.
  : >"$work/status"
  apt+=(-o "Dir::State::status=$work/status" -o APT::Install-Recommends=false -o APT::Architecture=arm64 -o APT::Architectures::=arm64)
  say "fetching Python $version for arm64 of Debian 13 through apt (30 MB, once)"
  { "${apt[@]}" update && "${apt[@]}" -y --download-only install "python$version" libstdc++6; } >"$work/log" 2>&1 9>&- || {
    tail -n 15 "$work/log" >&2
    die "apt could not bring Python for arm64"
  }
  # The first has the links that make /lib and /usr/lib one, which the others unpack through.
  mkdir -p "$work/root/usr/lib"
  ln -s usr/lib "$work/root/lib"
  for package in "$work"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/root" --keep-directory-symlink; done
  [ -x "$work/root/usr/bin/python$version" ] || die "the package has no python$version"
  rm -rf "$root"
  mv "$work/root" "$root"
  rm -rf "$work"
fi
flock -u 9

packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
tags=()
for tag in 2_17 2_27 2_28 2_34; do tags+=(--platform "manylinux_${tag}_aarch64"); done
tags+=(--platform manylinux2014_aarch64)
"${PYTHON:-$ROOT/.venv/bin/python}" -m pip install -q --disable-pip-version-check --target "$packages" --only-binary :all: --implementation cp \
  --python-version $version --abi "cp${version/./}" --abi abi3 --abi none "${tags[@]}" "$wheel"
qemu-aarch64 -L "$root" -E "PYTHONPATH=$packages" -E "PYTHONHOME=$root/usr" "$python" "$program"
