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
  [ ! -f "${program%.cc}.txt" ] || diff "${program%.cc}.txt" "$work/printed" || die "$name prints something else than its page says"
done

lock build/consumer
# The same program with the sources as a subdirectory. Its build folder is beside release, whose objects come from ccache then:
# the relative paths in their commands are the same.
cmake -G Ninja -S "$ROOT/tests/consumer" -B "$ROOT/build/consumer" -DRIFFLE_SOURCE_DIR="$ROOT" -DRIFFLE_WERROR=ON \
  -DCMAKE_BUILD_TYPE=Release
cmake --build "$ROOT/build/consumer" --parallel "$JOBS"
ctest --test-dir "$ROOT/build/consumer" --output-on-failure --no-tests=error
