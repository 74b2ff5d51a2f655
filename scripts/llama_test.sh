#!/usr/bin/env bash
# Tests libggml-cpu-riffle.so in the llama.cpp of scripts/llama_host.sh. Arguments are those of Python's unittest, such as
# Tokens.test_gemma.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

"$ROOT/scripts/llama_host.sh"
"$ROOT/scripts/build.sh" release --target llama_test_programs
exec python3 "$ROOT/integrations/llama.cpp/tests/llama_test.py" "$ROOT/build/release/integrations/llama.cpp" -v "$@"
