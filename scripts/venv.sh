#!/usr/bin/env bash
# Makes .venv and installs the Python packages of python/requirements-NAME.txt into it.
#
#   scripts/venv.sh            NAME = test: NumPy, PyTorch, JAX, pytest and what builds the package
#   scripts/venv.sh bench      the peers of the benchmarks as well
#   scripts/venv.sh vllm       vLLM for CPUs, in an environment of its own: .venv-vllm
#
# Downloads are kept in the cache folder; with a warm cache this takes seconds and no network. riffle itself is installed
# by `make python`. PYTHON=... chooses the interpreter (3.11 or newer).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

name=${1:-test}
requirements=$ROOT/python/requirements-$name.txt
[ -f "$requirements" ] || die "there is no python/requirements-$name.txt"
venv=$ROOT/.venv
overrides=$ROOT/python/overrides.txt
# vLLM pins another PyTorch.
if [ "$name" = vllm ]; then venv=$ROOT/.venv-vllm overrides=$ROOT/python/overrides-vllm.txt; fi
stamp=$venv/.riffle-$name
uv_version=0.13.9
uv=$CACHE/tools/bin/uv
export UV_CACHE_DIR=$CACHE/uv

# The first that is new enough; the system's own before others, since setup.sh installs its headers.
choose_python() {
  local candidate candidates=(/usr/bin/python3 python3 python3.13 python3.12 python3.11)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if have "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "$candidate"
      return
    fi
  done
  die "needs Python 3.11 or newer${PYTHON:+; PYTHON=$PYTHON is not}"
}
python=$(choose_python)
lock "${venv##*/}"

# What is installed depends on these files alone; if their text is the same, there is nothing to do.
wanted=$("$python" --version && cat "$ROOT"/python/requirements-*.txt "$ROOT"/python/constraints.txt "$overrides")
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
  say "${venv##*/} has what python/requirements-$name.txt asks for"
  exit 0
fi

# uv, in a little environment of its own. It shares files between checkouts by hard links.
get_uv() {
  [ "$("$uv" --version 2>/dev/null | cut -d ' ' -f 2)" = "$uv_version" ] && return
  say "installing uv $uv_version into $CACHE/tools"
  mkdir -p "$CACHE"
  "$python" -m venv --clear "$CACHE/tools" && "$CACHE/tools/bin/python" -m pip install -q "uv==$uv_version"
}

with_uv() {
  # pip's mirrors and certificates, for uv.
  eval "$("$CACHE/tools/bin/python" "$ROOT/scripts/pip_settings.py")"
  export UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1
  [ -n "${CI:-}" ] && export UV_NO_PROGRESS=1
  local install=("$uv" pip install --python "$venv/bin/python" -r "$requirements" --overrides "$overrides")
  # First from the cache alone; its complaint about what it lacks is of no interest.
  if [ ! -x "$venv/bin/python" ] || ! same_python; then
    "$uv" venv -q --clear --seed --offline --python "$python" "$venv" 2>/dev/null ||
      "$uv" venv -q --clear --seed --python "$python" "$venv"
  fi
  "${install[@]}" -q --offline 2>/dev/null || "${install[@]}"
}

with_pip() {
  if [ ! -x "$venv/bin/python" ] || ! same_python; then "$python" -m venv --clear "$venv"; fi
  "$venv/bin/python" -m pip install -r "$requirements"
}

# Whether .venv was made from the Python that is asked for.
same_python() { [ "$("$venv/bin/python" --version)" = "$("$python" --version)" ]; }

say "making ${venv##*/} from $("$python" --version) with python/requirements-$name.txt (cold: 2 GB to download; warm: seconds)"
if get_uv; then
  with_uv
else
  warn "uv cannot be installed here; using pip, which is slower and keeps no shared cache"
  with_pip
fi
echo "$wanted" >"$stamp"
say "done in $SECONDS s"
