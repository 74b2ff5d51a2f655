#!/usr/bin/env bash
# Builds the API site into build/docs/html: the headers by Doxygen, docstrings and pages by Sphinx. Warnings are errors.
#
# Needs the packages of `scripts/setup.sh docs` and, in .venv, those of python/requirements-docs.txt (`scripts/venv.sh docs`).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

have doxygen || die "there is no doxygen: run scripts/setup.sh docs"
[ -x .venv/bin/sphinx-build ] || die "there is no Sphinx in .venv: run scripts/venv.sh docs"
lock build/docs
rm -rf build/docs
mkdir -p build/docs
doxygen docs/Doxyfile
.venv/bin/sphinx-build -q -W --keep-going -j "$JOBS" -c docs -d build/docs/doctrees . build/docs/html
say "build/docs/html/docs/index.html"
