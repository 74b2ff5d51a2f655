#!/usr/bin/env bash
# Makes the wheels of dist/wheels for Linux on x86-64 and 64-bit ARM: one for each Python before 3.12, one for all later ones, which
# run wherever glibc is 2.28 or newer (manylinux_2_28). Then installs those of this processor into clean environments of every Python
# here, and tries them without a compiler in reach.
#
#   scripts/wheels.sh                        both processors
#   scripts/wheels.sh x86_64                 one
#
# Needs no container: the compiler is Zig's clang, a package of the Python index, which has the headers and the symbols of every
# glibc and links its C++ library statically. The sources are those of the source distribution.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/pythons.sh"

glibc=2.28
max_bytes=12000000
stable=12 # the minor version from which on one wheel serves all
work=$ROOT/build/wheels
dist=$ROOT/dist/wheels
[ $# -gt 0 ] || set -- x86_64 aarch64

sdist=$("$ROOT/scripts/sdist.sh" | tail -n 1) # "sdist.sh: dist/NAME"
sdist=$ROOT/${sdist#* }
lock build/wheels
rm -rf "$work/source" "$dist"
mkdir -p "$work/source" "$work/bin" "$work/raw" "$dist"
tar -xzf "$sdist" -C "$work/source" --strip-components=1
use_ccache
# The objects of the library are the same for every Python; ccache knows that by these.
export CCACHE_BASEDIR=$work CCACHE_NOHASHDIR=1 CCACHE_COMPILERTYPE=clang

# An environment of Python $1 with what builds wheels, in $work/$2.
environment() {
  local venv=$work/$2
  if [ "$("$venv/bin/python" --version 2>/dev/null)" = "$("$1" --version)" ] &&
    cmp -s "$venv/requirements.txt" "$ROOT/python/requirements-wheels.txt"; then return 0; fi
  "$1" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install -q -r "$ROOT/python/requirements-wheels.txt"
  cp "$ROOT/python/requirements-wheels.txt" "$venv"/requirements.txt
}

# Programs that CMake takes for a compiler and its tools, for processor $1: zig is one program with subcommands.
zig_tools() {
  local arch=$1 zig tool cpu=
  # Zig switches off by name every feature that a processor lacks, and clang 18 to 21 treat 512-bit vectors as a feature of their own
  # (evex512), which Highway's functions for AVX-512 do not ask for. evex512 alone allows no further instruction.
  if [ "$arch" = x86_64 ]; then cpu=-mcpu=x86_64+evex512; fi
  zig=$("$work/$2/bin/python" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))')
  for tool in cc c++; do
    printf '#!/bin/sh\nexec "%s" %s -target %s-linux-gnu.%s %s "$@"\n' "$zig" $tool "$arch" $glibc "$cpu" >"$work/bin/$arch-$tool"
  done
  for tool in ar ranlib; do printf '#!/bin/sh\nexec "%s" %s "$@"\n' "$zig" $tool >"$work/bin/$arch-$tool"; done
  chmod +x "$work/bin/$arch"-*
  # Its version, not the date of a script that was just written.
  CCACHE_COMPILERCHECK="string:zig $("$zig" version) $arch $glibc $cpu"
  export CCACHE_COMPILERCHECK
}

# Prints the folder with the headers of the Python in $work/python-$1. Debian's pyconfig.h includes one for each processor from a folder
# that only Debian's own compilers search; so the headers are copied to a folder in which the processor's own takes its place. What it says of
# x86-64 is also right for 64-bit ARM, as far as extension modules need it.
python_headers() {
  local include multiarch
  include=$("$work/python-$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  multiarch=$("$work/python-$1/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("MULTIARCH") or "none")')
  if [ -f "/usr/include/$multiarch/python3.$1/pyconfig.h" ] && [ "$include" = "/usr/include/python3.$1" ]; then
    rm -rf "$work/include-$1"
    cp -RL "$include" "$work/include-$1"
    cp -f "/usr/include/$multiarch/python3.$1/pyconfig.h" "$work/include-$1"
    include=$work/include-$1
  fi
  echo "$include"
}

# The wheel of processor $1 and Python 3.$2, whose interpreter may be of another processor.
wheel() {
  local arch=$1 minor=$2 suffix headers
  headers=$(python_headers "$minor")
  local settings=(
    "build-dir=$work/build-$arch-$minor" install.strip=false
    "cmake.define.CMAKE_SYSTEM_NAME=Linux" "cmake.define.CMAKE_SYSTEM_PROCESSOR=$arch"
    "cmake.define.CMAKE_AR=$work/bin/$arch-ar" "cmake.define.CMAKE_RANLIB=$work/bin/$arch-ranlib"
    cmake.define.CMAKE_DISABLE_FIND_PACKAGE_hwy=ON cmake.define.CMAKE_LINK_DEPENDS_USE_LINKER=OFF
    cmake.define.RIFFLE_WERROR=ON "cmake.define.Python_INCLUDE_DIR=$headers"
  )
  suffix=.cpython-3$minor-$arch-linux-gnu.so
  say "building for $arch and Python 3.$minor"
  rm -rf "$work/raw/$arch-$minor"
  # <cstdio>: a file of nanobind takes it for granted, which LLVM's C++ library does not bring by others. -s: no symbol table.
  (cd "$work/source" && env CC="$work/bin/$arch-cc" CXX="$work/bin/$arch-c++" CXXFLAGS="-include cstdio" LDFLAGS=-s \
    _PYTHON_HOST_PLATFORM="linux-$arch" SETUPTOOLS_EXT_SUFFIX="$suffix" CMAKE_BUILD_PARALLEL_LEVEL="$JOBS" \
    "$work/python-$minor/bin/python" -m pip wheel -q --no-build-isolation --no-deps -w "$work/raw/$arch-$minor" \
    "${settings[@]/#/--config-settings=}" . 9>&-)
  check_and_tag "$work/python-$minor/bin/python" "$arch" "$work/raw/$arch-$minor"/*.whl
}

# Moves a wheel to dist under its tag, if it keeps what the tag promises: no symbol newer than that glibc, and no library that some
# Linux lacks.
check_and_tag() {
  local python=$1 arch=$2 file=$3 found
  "$python" -m auditwheel show "$file" >"$work/auditwheel.log" 2>&1 || true
  found=$(grep -oE "manylinux_2_[0-9]+_$arch" "$work/auditwheel.log" | head -n 1 || true)
  if [ -z "$found" ] || [ "$(cut -d _ -f 3 <<<"$found")" -gt "${glibc#*.}" ]; then
    cat "$work/auditwheel.log" >&2
    die "$(basename "$file") needs a newer system than one with glibc $glibc"
  fi
  "$python" -m wheel tags --remove --platform-tag "manylinux_${glibc/./_}_$arch" "$file" >/dev/null
  mv "$(dirname "$file")"/*.whl "$dist"
}

all=$(pythons)
newest=$(tail -n 1 <<<"$all" | cut -d ' ' -f 1)
made=() # "MINOR path" of the Pythons that get a wheel of their own
while read -r minor python; do
  if [ "$minor" -lt $stable ] || [ "${have_stable:-}" != yes ]; then
    made+=("$minor $python")
    if [ "$minor" -ge $stable ]; then have_stable=yes; fi
  fi
done <<<"$all"
[ "${have_stable:-}" = yes ] || die "needs a Python of 3.$stable or newer; the newest here is 3.$newest"

for arch in "$@"; do
  for one in "${made[@]}"; do
    environment "${one#* }" "python-${one%% *}"
    zig_tools "$arch" "python-${one%% *}"
    wheel "$arch" "${one%% *}"
  done
done

for file in "$dist"/*.whl; do
  size=$(stat -c %s "$file")
  [ "$size" -le $max_bytes ] || die "$file has $size bytes, more than $max_bytes"
  say "$(basename "$file"): $((size / 1000)) kB"
done

# Tries the wheel for ARM under an emulator, if there is one and this machine is not ARM.
if [ "$(uname -m)" != aarch64 ] && have qemu-aarch64; then
  for file in "$dist"/*-abi3-*_aarch64.whl; do
    [ ! -e "$file" ] || "$ROOT/scripts/arm64_python.sh" "$file" "$ROOT/python/tests/smoke.py" || die "$file does not work under qemu"
  done
fi

# As a user installs them: binary packages alone, and no program in reach but Python.
case " $* " in *" $(uname -m) "*) ;; *) exit 0 ;; esac
while read -r minor python; do
  rm -rf "$work/try-$minor"
  "$python" -m venv "$work/try-$minor"
  tag=$([ "$minor" -lt $stable ] && echo "cp3$minor-cp3$minor" || echo abi3)
  # A file by its name: the index may have other versions. NumPy and ml_dtypes come from the index, as wheels.
  "$work/try-$minor/bin/python" -m pip install -q --only-binary :all: "$dist"/riffle_llm-*-"$tag"-*_"$(uname -m)".whl </dev/null ||
    die "no wheel installs with Python 3.$minor"
  (cd / && env -i PATH=/nonexistent "$work/try-$minor/bin/python" "$ROOT/python/tests/smoke.py") ||
    die "what Python 3.$minor installed is wrong"
done <<<"$all"
say "in order"
