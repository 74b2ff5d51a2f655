#!/usr/bin/env bash
# What `make demo` shows once the command is built: the 64 best tokens of each row of a batch of logits, the proof that they
# are the best, and the time beside the time of only reading the batch.
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

show "$riffle" info
say "logits as a language model of 201088 tokens makes them for a batch of 32 (made up, the same on every machine)"
show "$riffle" make-logits "$logits" --rows 32 --vocab 201088 --dtype bf16
show "$riffle" topk "$logits" -k 64 --dtype bf16 --show-rows 2 --show 8 --stats --check --time
say "next: $riffle topk --help; $riffle bench topk --quick; README.md"
