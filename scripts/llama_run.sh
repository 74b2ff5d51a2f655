#!/usr/bin/env bash
# Runs a program with the llama.cpp that scripts/llama_host.sh fetched, with libggml-cpu-riffle.so among its CPU backends or without.
#
#   scripts/llama_run.sh on|off PROGRAM [arguments]    PROGRAM: a name such as llama-bench, or a path with a slash
#
# llama.cpp looks for backends beside its program, which is here the loader, and in the working directory: a folder of links, one with
# the file and one without. File arguments must therefore be absolute.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

with=${1:?usage: llama_run.sh on|off PROGRAM [arguments]} program=$2
shift 2
root=$("$ROOT/scripts/llama_host.sh" --path)
libraries=$(dirname "$(echo "$root"/usr/lib/*/libggml-base.so.0)")
folder=$ROOT/build/llama/$with
mkdir -p "$folder"
for backend in "$libraries"/ggml/*/libggml-cpu-*.so; do ln -sf "$backend" "$folder"; done
[ "$with" = off ] || ln -sf "$ROOT/build/release/integrations/llama.cpp/libggml-cpu-riffle.so" "$folder"
case $program in */*) program=$(realpath "$program") ;; *) program=$root/usr/bin/$program ;; esac
cd "$folder"
exec "$(echo "$root"/usr/lib64/ld-linux-*.so.*)" --library-path "$libraries:$libraries/llama" "$program" "$@"
