#!/usr/bin/env bash
# Checks the format and the pages, runs clang-tidy over the library and the command, and shellcheck over the scripts if it is there.
#
#   scripts/lint.sh           all
#   scripts/lint.sh format    the format only; --fix after it rewrites the files
#   scripts/lint.sh docs      the pages only: the picture of the architecture, published figures, names of files and links
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Formats differ between versions: 14, of Debian 12, is the one that counts.
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
}

docs() {
  python3 scripts/architecture.py --check
  python3 bench/figures.py --check
  python3 scripts/docs_check.py
}

if [ "${1:-}" = format ]; then
  format "${2:-}"
  exit 0
fi
if [ "${1:-}" = docs ]; then
  docs
  exit 0
fi
format
say "format: in order"
docs
say "pages: in order"
"$ROOT/scripts/build.sh" clang
cxx_files | grep -E '^(src|cli)/.*\.cc$' |
  xargs -r -P "$JOBS" -n 1 "$(tool clang-tidy)" -p build/clang --quiet --warnings-as-errors='*'
say "clang-tidy: in order"
if have shellcheck; then shellcheck -x -P SCRIPTDIR scripts/*.sh .ci/run; fi
