#!/usr/bin/env bash
# Runs one stage of the tests under a heading, and tells how long it took. The output is kept in build/log/NAME.log.
#
#   scripts/stage.sh NAME TITLE COMMAND...
set -euo pipefail
. "$(dirname "$0")/lib.sh"

name=$1 title=$2
shift 2
mkdir -p "$ROOT/build/log"
log=$ROOT/build/log/$name.log
printf '\n==== %s\n' "$title"
status=0
"$@" 2>&1 | tee "$log" || status=$?
if [ $status != 0 ]; then
  printf '==== %s: FAILED after %d s (build/log/%s.log)\n' "$title" "$SECONDS" "$name"
  exit $status
fi
printf '==== %s: %d s\n' "$title" "$SECONDS"
printf '%s\t%d\t%s\n' "$name" "$SECONDS" "$title" >>"$ROOT/build/log/stages"
