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

show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

scripts/model.sh
show "$riffle" generate --prompts examples/prompts.txt --max-new-tokens 40
show "$riffle" generate --chat --prompt "What is the capital of France?" --max-new-tokens 60
printf '\n'
say "the top-k alone, on logits as a language model of 201088 tokens makes them (made up, the same on every machine)"
show "$riffle" make-logits "$logits" --rows 32 --vocab 201088 --dtype bf16
show "$riffle" topk "$logits" -k 64 --dtype bf16 --show-rows 1 --show 4 --stats --check --time
say "next: $riffle generate --chat; $riffle generate --help; $riffle topk --help; $riffle bench topk --quick; README.md"
