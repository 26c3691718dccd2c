#!/usr/bin/env bash
# libFuzzer on the kernels, with AddressSanitizer and UndefinedBehaviorSanitizer: tests/native/fuzz/target.cpp.
#
#   scripts/fuzz.sh MINUTES [PYTHON]
#
# Replays the stored inputs (tests/native/fuzz/*.txt), sees that errors on purpose are found by them, then fuzzes for
# MINUTES; 0 replays only. New inputs stay in build/fuzz/corpus, and what broke in build/fuzz/found. Fails without clang,
# without executions, when an error on purpose goes unseen, and at the first broken promise or sanitizer's word.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=$1
python=${2:-python3}
place=build/fuzz
target=$place/tests/native/fuzz_target

fail() {
  echo "fuzz: $*" >&2
  exit 1
}

for tool in cmake "$python"; do
  command -v "$tool" > /dev/null || fail "$tool is missing: install it"
done
clang=$(scripts/clang.sh)
# Branches are traced and comparisons are not: those of loops in the kernels took nine tenths of the time.
cmake -S . -B "$place" -DTAILBOUND_HARNESS=ON -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-w -g \
-fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -fsanitize-coverage=inline-8bit-counters,pc-table" > /dev/null
cmake --build "$place" --target fuzz_target -j "${JOBS:-2}" > /dev/null

export ASAN_OPTIONS=abort_on_error=1:detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
mkdir -p "$place/corpus" "$place/found"
"$python" tests/native/fuzz/stored.py unpack tests/native/fuzz "$place/stored"

executed() {
  sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$1"
}

"$target" -runs=0 "$place/stored" > "$place/replay.log" 2>&1 || { tail -40 "$place/replay.log"; fail "a stored input breaks"; }
count=$(find "$place/stored" -type f | wc -l)
[ "$count" -gt 0 ] && [ "$(executed "$place/replay.log")" -ge "$count" ] || fail "not all of $count stored inputs were executed"
echo "fuzz: $count stored inputs hold"

# Controls: what breaks on purpose is seen, in the words that belong to it.
for control in "tv:below the truth" "error:below the truth" "short:heap-buffer-overflow" "undefined:signed integer overflow"; do
  TAILBOUND_FUZZ_CONTROL=${control%%:*} "$target" -runs=0 -artifact_prefix="$place/" "$place/stored" > "$place/control.log" 2>&1 &&
    fail "an error on purpose (${control%%:*}) went unseen"
  grep -q "${control#*:}" "$place/control.log" || { tail -20 "$place/control.log"; fail "an error on purpose (${control%%:*}) ended otherwise"; }
done
rm -f "$place"/crash-*
echo "fuzz: 4 errors on purpose were found"

[ "$minutes" = 0 ] && exit 0
"$target" -max_total_time=$((minutes * 60)) -max_len=512 -print_final_stats=1 -artifact_prefix="$place/found/" \
  "$place/corpus" "$place/stored" > "$place/fuzz.log" 2>&1 || {
  tail -60 "$place/fuzz.log"
  fail "an input breaks; it lies in $place/found. Mend what is broken, and store it: tests/native/fuzz/stored.py pack"
}
[ "$(executed "$place/fuzz.log")" -gt "$count" ] || fail "nothing was executed"
grep -E "^(Done|stat::number_of_executed_units|stat::new_units_added)" "$place/fuzz.log"
grep -E "cov: " "$place/fuzz.log" | tail -1
