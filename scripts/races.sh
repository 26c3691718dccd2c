#!/usr/bin/env bash
# The kernels on several threads under ThreadSanitizer: tests/native/races/races.cpp.
#
#   scripts/races.sh
#
# Two builds: teams of std::thread, and teams as from an OpenMP runtime. Then two controls: keys written over while they
# are read, and kernels whose barrier waits and orders nothing, which the sanitizer must see. Fails when the compiler has no
# ThreadSanitizer, when a scene did not run at every level of this machine, and at the first race.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
place=build/races

fail() {
  echo "races: $*" >&2
  exit 1
}

command -v cmake > /dev/null || fail "cmake is missing: install it"
mkdir -p "$place"
echo 'int main() { return 0; }' > "$place/probe.cpp"
"$cxx" -fsanitize=thread "$place/probe.cpp" -o "$place/probe" 2> /dev/null ||
  fail "$cxx cannot link ThreadSanitizer; install the sanitizer libraries of GCC (Debian: libtsan2) or set CXX"

# Memory is mapped where this sanitizer expects it: newer kernels spread it further than older sanitizers can follow.
plain=(env)
if command -v setarch > /dev/null && setarch -R true 2> /dev/null; then plain=(setarch -R); fi
"${plain[@]}" "$place/probe" || fail "a program with ThreadSanitizer does not start here"

build() {  # SOURCES OUT
  cmake -S "$1" -B "$2" -DTAILBOUND_HARNESS=ON -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_CXX_FLAGS="-w -g -fsanitize=thread" > /dev/null
  cmake --build "$2" --target races races_openmp -j "${JOBS:-2}" > /dev/null
}

export TSAN_OPTIONS=halt_on_error=1:exitcode=66
build . "$place/whole"
for team in races races_openmp; do
  for scene in attend own turns; do
    for threads in 1 3; do
      "${plain[@]}" "$place/whole/tests/native/$team" "$scene" "$threads" > "$place/log" 2>&1 || { tail -60 "$place/log"; fail "$team $scene $threads"; }
      grep -q "scalar" "$place/log" && grep -qE "^races: [1-9][0-9]* checks" "$place/log" || fail "$team $scene $threads checked nothing"
      sed "s/^/$team: /" "$place/log"
    done
  done
done

seen() {  # PROGRAM SCENE THREADS
  "${plain[@]}" "$1" "$2" "$3" > "$place/control.log" 2>&1 && fail "a race on purpose went unseen: $2"
  grep -q "ThreadSanitizer: data race" "$place/control.log" || { tail -20 "$place/control.log"; fail "a race on purpose ended otherwise: $2"; }
  echo "races: a race on purpose was seen: $2${4:-}"
}
seen "$place/whole/tests/native/races" control-change 1

rm -rf "$place/tree"
mkdir -p "$place/tree/tests"
cp -r CMakeLists.txt csrc "$place/tree"
cp -r tests/native "$place/tree/tests"
orders=$(grep -c "memory_order_acq" csrc/threads.cpp) && [ "$(grep -cF "round_.store(round + 1);" csrc/threads.cpp)" = 1 ] ||
  fail "csrc/threads.cpp has no barrier that these controls know"
sed -i "s/memory_order_acq[a-z_]*/memory_order_relaxed/; s/round_.store(round + 1);/round_.store(round + 1, std::memory_order_relaxed);/" \
  "$place/tree/csrc/threads.cpp"
echo "races: $orders acquisitions of the team's barrier taken away"
build "$place/tree" "$place/broken"
seen "$place/broken/tests/native/races" attend 3 " (a barrier that orders nothing)"
seen "$place/broken/tests/native/races_openmp" attend 3 " (the same, OpenMP)"
