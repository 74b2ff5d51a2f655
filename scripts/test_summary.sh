#!/usr/bin/env bash
# Closes `make test`: seconds a stage, and how many tests passed, read from build/log.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT/build/log"

# The closing lines of ctest ("... 0 tests failed out of 12") and of pytest ("34 passed, 1 skipped in 5.6s").
passed() { sed -nE 's/.* 0 tests failed out of ([0-9]+).*/\1/p; s/^=* *([0-9]+) passed.*/\1/p' "$1.log" | tail -n 1; }

printf '\n'
total=0 seconds=0 counts=
while IFS=$'\t' read -r name took title; do
  count=$(passed "$name")
  printf '%6d s  %-58s %s\n' "$took" "$title" "${count:+$count passed}"
  total=$((total + ${count:-0})) seconds=$((seconds + took))
  [ -z "$count" ] || counts="$counts${counts:+, }$name $count"
done <stages
printf '\n%d tests passed, 0 failed (%s) in %d s\n' "$total" "$counts" "$seconds"
