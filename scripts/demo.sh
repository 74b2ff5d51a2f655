#!/usr/bin/env bash
# What `make demo` shows once the command is built: texts that a small language model continues, all of them in one batch, a question
# that another one answers, and then the selection alone: the 64 best of 201088 logits in each of 32 rows, with the proof that they are the best.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

riffle=build/release/riffle
[ -x "$riffle" ] || die "there is no $riffle yet: run make demo, or scripts/build.sh release"
logits=build/demo/logits.npy
mkdir -p build/demo

# Prints a command as one can type it, then runs it.
show() {
  local word line=
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./=-]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '\n$%s\n' "$line"
  "$@"
}

scripts/model.sh
printf '\n'
say "1. Gemma 3 270M continues five texts, all in one batch"
show "$riffle" generate --prompts examples/prompts.txt --max-new-tokens 40
printf '\n'
say "2. SmolLM2 135M Instruct answers a question, by its own chat template"
show "$riffle" generate --chat --prompt "What is the capital of France?" --max-new-tokens 60
printf '\n'
say "3. the top-k alone, on synthetic logits of a vocabulary of 201088 tokens (the same on every machine)"
show "$riffle" make-logits "$logits" --rows 32 --vocab 201088 --dtype bf16
show "$riffle" topk "$logits" -k 64 --dtype bf16 --show-rows 1 --show 4 --stats --check --time
printf '\n'
say "next: $riffle generate --chat; $riffle generate --help; $riffle topk --help; $riffle bench topk --quick; README.md"
