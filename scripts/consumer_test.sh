#!/usr/bin/env bash
# Proves that an installed riffle can be used: installs build/release under a temporary prefix, then configures, builds and
# runs tests/consumer, which knows nothing but find_package(riffle), and every C++ program of README.md and docs/*.md.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

build=$ROOT/build/release
[ -f "$build/CMakeCache.txt" ] || "$ROOT/scripts/build.sh" release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The prefix is moved after the installation: the package must not depend on where it was installed.
cmake --install "$build" --prefix "$work/first" >"$work/install.log" || {
  cat "$work/install.log" >&2
  die "cmake --install failed"
}
mv "$work/first" "$work/prefix"
# The consumer is copied too, so that no relative path leads back into the sources.
cp -R "$ROOT/tests/consumer" "$work/consumer"
# The C++ programs of the pages, and what the pages say that they print.
mkdir "$work/consumer/pages"
python3 "$ROOT/scripts/cpp_blocks.py" "$work/consumer/pages"
use_ccache
cmake -G Ninja -S "$work/consumer" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_BUILD_TYPE=Release
cmake --build "$work/build" --parallel "$JOBS"
ctest --test-dir "$work/build" --output-on-failure --no-tests=error
if grep -rIlF "$ROOT" "$work/prefix"; then die "the installed files above name the checkout"; fi
"$work/prefix/bin/riffle" info
for program in "$work"/consumer/pages/*.cc; do
  name=$(basename "$program" .cc)
  "$work/build/$name" >"$work/printed" || die "the program $name of the pages fails"
  [ ! -f "${program%.cc}.txt" ] || diff "${program%.cc}.txt" "$work/printed" || die "$name does not print what its page says"
done

# Callers without exceptions may include every header.
for header in "$work"/prefix/include/riffle/*.h; do printf '#include "riffle/%s"\n' "${header##*/}"; done >"$work/headers.cc"
c++ -std=c++20 -fno-exceptions -fno-rtti -Wall -Wextra -Werror -fsyntax-only -I "$work/prefix/include" "$work/headers.cc"

# By pkg-config, with another compiler driver than CMake's: static here, shared below.
if have pkg-config; then
  flags=$(PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name riffle.pc)") pkg-config --static --cflags --libs riffle)
  # shellcheck disable=SC2086  # flags are words
  c++ -std=c++20 "$work"/consumer/{main,own_highway}.cc $flags -o "$work/by_pkg_config"
  "$work/by_pkg_config"
  # And a program in C, by the C compiler alone.
  # shellcheck disable=SC2086
  cc -std=c11 "$ROOT/examples/c_api/top_k.c" $flags -o "$work/in_c"
  "$work/in_c"
fi

# The same program with the sources as a part of its build, by add_subdirectory and by FetchContent, beside a Highway of its own. The
# build folders are beside release, whose objects come from ccache then: the relative paths in their commands are the same.
lock build/consumer
for how in subdirectory fetch; do
  cmake -G Ninja -S "$ROOT/tests/consumer" -B "$ROOT/build/consumer-$how" -DRIFFLE_SOURCE_DIR="$ROOT" -DRIFFLE_SOURCE_BY="$how" \
    -DRIFFLE_WERROR=ON -DCMAKE_BUILD_TYPE=Release
  cmake --build "$ROOT/build/consumer-$how" --parallel "$JOBS"
  ctest --test-dir "$ROOT/build/consumer-$how" --output-on-failure --no-tests=error
done

# A shared library, whose objects are those of release too.
cmake -G Ninja -S "$ROOT" -B "$ROOT/build/consumer-shared" -DBUILD_SHARED_LIBS=ON -DRIFFLE_BUILD_CLI=OFF -DRIFFLE_WERROR=ON \
  -DCMAKE_BUILD_TYPE=Release
cmake --build "$ROOT/build/consumer-shared" --parallel "$JOBS"
cmake --install "$ROOT/build/consumer-shared" --prefix "$work/shared" >/dev/null
cmake -G Ninja -S "$work/consumer" -B "$work/build-shared" -DCMAKE_PREFIX_PATH="$work/shared" -DCMAKE_BUILD_TYPE=Release
cmake --build "$work/build-shared" --parallel "$JOBS" --target riffle_consumer
ctest --test-dir "$work/build-shared" --output-on-failure --no-tests=error
