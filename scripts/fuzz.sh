#!/usr/bin/env bash
# Builds the fuzz targets and runs each over its corpus, fuzz/corpus/TARGET, for its share of SECONDS (default 60).
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
share=$((seconds / ${#targets[@]}))
[ "$share" -gt 0 ] || share=1
mkdir -p build/fuzz/crashes
for target in "${targets[@]}"; do
  program=$(find build/fuzz -type f -name "$target" -perm -u+x | head -n 1)
  [ -n "$program" ] || die "build/fuzz has no program $target"
  corpus=fuzz/corpus/$target
  [ -d "$corpus" ] || die "there is no $corpus"
  mkdir -p "build/fuzz/found/$target"
  say "$target: $(find "$corpus" -type f | wc -l) inputs, $share s"
  "$program" -max_total_time="$share" -seed=1 -timeout=25 -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/crashes/$target-" "build/fuzz/found/$target" "$corpus"
done
