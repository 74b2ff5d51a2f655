#!/usr/bin/env bash
# Checks the format and the pages, runs clang-tidy over the library and the command, ruff and pyright over the Python files,
# the workflow and CITATION.cff against their schemas, and, if it is there, shellcheck over the scripts.
#
#   scripts/lint.sh           all
#   scripts/lint.sh python    the Python files and the schemas only
#   scripts/lint.sh format    the format and the includes only; --fix after it rewrites the files
#   scripts/lint.sh docs      the pages only: the picture of the architecture, published figures, names of files and links
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Versions format differently: clang-format 14, that of Debian 12, is the one that counts.
tool() { have "$1-14" && echo "$1-14" || echo "$1"; }

# Files that exist, tracked or not yet; never what is ignored.
cxx_files() {
  git ls-files --cached --others --exclude-standard -- '*.h' '*.cc' '*.cpp' | while IFS= read -r f; do
    [ -f "$f" ] && printf '%s\n' "$f"
  done || true
}

format() {
  local mode=(--dry-run -Werror)
  if [ "${1:-}" = --fix ]; then mode=(-i); fi
  cxx_files | xargs -r "$(tool clang-format)" --style=file "${mode[@]}"
  python3 scripts/includes_check.py
}

# pyproject.toml says what ruff and pyright check.
python() {
  "$ROOT/scripts/venv.sh" && "$ROOT/scripts/venv.sh" lint
  .venv/bin/ruff check python bench scripts
  say "ruff: in order"
  .venv/bin/pyright --pythonpath .venv/bin/python
  say "pyright: in order"
  .venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
  .venv/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
}

docs() {
  python3 scripts/architecture.py --check
  python3 bench/figures.py --check
  python3 scripts/docs_check.py
}

case "${1:-}" in
  format)
    format "${2:-}"
    exit 0
    ;;
  python)
    python
    exit 0
    ;;
  docs)
    docs
    exit 0
    ;;
esac
python
format
say "format: in order"
docs
say "pages: in order"
"$ROOT/scripts/build.sh" clang
cxx_files | grep -E '^(src|cli)/.*\.cc$' |
  xargs -r -P "$JOBS" -n 1 "$(tool clang-tidy)" -p build/clang --quiet --warnings-as-errors='*'
say "clang-tidy: in order"
if have shellcheck; then shellcheck -x -P SCRIPTDIR scripts/*.sh .ci/run; fi
