#!/usr/bin/env bash
# Makes dist/riffle_llm-VERSION.tar.gz, the source distribution, by the Python of .venv (made by venv.sh). Highway and Random123
# travel inside, so that it installs with a compiler and pip alone.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

python=$ROOT/.venv/bin/python
[ -x "$python" ] || die "there is no .venv yet: run scripts/venv.sh"
[ -f "$ROOT/.deps/highway/hwy/highway.h" ] || "$ROOT/scripts/highway.sh"

# Random123 is headers, of which the library includes one; each has its licence in itself.
installed=/usr/include/Random123
inside=$ROOT/.deps/random123/include/Random123
[ -f "$installed/philox.h" ] || die "needs Random123's headers (librandom123-dev): run scripts/setup.sh build"
mkdir -p "$inside/features"
cp "$installed"/{philox,array}.h "$inside"
cp "$installed"/features/*.h "$inside/features"

cd "$ROOT"
mkdir -p dist
name=$("$python" -c 'import scikit_build_core.build as b; print(b.build_sdist("dist"))' | tail -n 1)
tar -tzf "dist/$name" >"dist/$name.files"
for file in .deps/highway/hwy/highway.h .deps/random123/include/Random123/philox.h; do
  grep -qF "/$file" "dist/$name.files" || die "dist/$name lacks $file"
done
rm "dist/$name.files"
say "dist/$name"
