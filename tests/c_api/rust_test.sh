#!/bin/sh
# Compiles a Rust program against a shared libriffle and runs it. Exit code 77, which ctest shows as skipped: no rustc here.
#
#   rust_test.sh PROGRAM.rs LIBRARY.so
set -eu
rustc --version 2>/dev/null || {
  echo "skipped: there is no rustc (Debian's package: rustc)"
  exit 77
}
folder=$(dirname "$2")
name=$(basename "$2" .so)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rustc --edition 2021 -D warnings -L "native=$folder" -l "dylib=${name#lib}" -C "link-arg=-Wl,-rpath,$folder" "$1" -o "$work/program"
# LD_LIBRARY_PATH as well: a rustc may drop rpath.
LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$work/program"
