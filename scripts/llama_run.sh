#!/usr/bin/env bash
# Runs a program with the llama.cpp that scripts/llama_host.sh fetched, with libggml-cpu-riffle.so or without.
#
#   scripts/llama_run.sh off|on|beside PROGRAM [arguments]    PROGRAM: a name such as llama-bench, or a path with a slash
#
# on: the file is among the CPU backends. beside: it is loaded from elsewhere, by GGML_BACKEND_PATH, as a device of its own.
# llama.cpp looks for backends beside its program, which here is the dynamic loader, and in the working directory. So programs run in a
# folder of links, of which there is one with the file and one without, and file arguments must be absolute.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

with=${1:?usage: llama_run.sh off|on|beside PROGRAM [arguments]} program=$2
shift 2
root=$("$ROOT/scripts/llama_host.sh" --path)
libraries=$(dirname "$(echo "$root"/usr/lib/*/libggml-base.so.0)")
file=$ROOT/build/release/integrations/llama.cpp/libggml-cpu-riffle.so
case $with in
  on) folder=$ROOT/build/llama/on ;;
  *) folder=$ROOT/build/llama/off ;;
esac
[ "$with" != beside ] || export GGML_BACKEND_PATH=$file
mkdir -p "$folder"
for backend in "$libraries"/ggml/*/libggml-cpu-*.so; do ln -sf "$backend" "$folder"; done
[ "$with" != on ] || ln -sf "$file" "$folder"
case $program in
  */*) program=$(realpath "$program") ;;
  test-*) program=$(echo "$root"/usr/libexec/*/llama.cpp-tests/"$program") ;;
  *) program=$root/usr/bin/$program ;;
esac
cd "$folder"
exec "$(echo "$root"/usr/lib64/ld-linux-*.so.*)" --library-path "$libraries:$libraries/llama" "$program" "$@"
