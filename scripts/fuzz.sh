#!/usr/bin/env bash
# Builds the fuzz targets and runs each over its corpus, fuzz/corpus/TARGET, as many at once as there are jobs; SECONDS (default 60)
# is what all of them take together, in equal shares.
# New inputs are kept in build/fuzz/found/TARGET and never change the corpus; a crash leaves its input in build/fuzz/crashes.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

seconds=${1:-60}
shift || true
"$ROOT/scripts/build.sh" fuzz
cd "$ROOT"
targets=("$@")
if [ $# = 0 ]; then
  for source in fuzz/fuzz_*.cc; do
    [ -e "$source" ] && targets+=("$(basename "$source" .cc)")
  done
fi
[ ${#targets[@]} -gt 0 ] || die "there is no fuzz/fuzz_*.cc"
share=$((seconds * JOBS / ${#targets[@]}))
[ "$share" -gt 0 ] || share=1
mkdir -p build/fuzz/crashes

# Runs one target and then prints what it said, so that the texts of two do not mix.
fuzz() {
  local target=$1 corpus=fuzz/corpus/$1 log=build/fuzz/$1.log program status=0
  program=$(find build/fuzz -type f -name "$target" -perm -u+x | head -n 1)
  [ -n "$program" ] || die "build/fuzz has no program $target"
  [ -d "$corpus" ] || die "there is no $corpus"
  mkdir -p "build/fuzz/found/$target"
  "$program" -max_total_time="$share" -seed=1 -timeout=25 -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/crashes/$target-" "build/fuzz/found/$target" "$corpus" >"$log" 2>&1 || status=$?
  say "$target: $(find "$corpus" -type f | wc -l) inputs, $share s"
  cat "$log"
  return $status
}

failed=0 running=0
for target in "${targets[@]}"; do
  if [ $running -ge "$JOBS" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  fuzz "$target" &
  running=$((running + 1))
done
while [ $running -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
[ $failed = 0 ] || die "a target failed: build/fuzz/TARGET.log has what it said, build/fuzz/crashes its input"
