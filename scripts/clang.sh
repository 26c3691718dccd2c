#!/usr/bin/env bash
# Prints a clang++ whose libFuzzer links: the one that is here (CLANG names another), or Debian's package. Needs root for
# the latter.
set -euo pipefail
clang=${CLANG:-clang++}
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' > "$probe/probe.cpp"

works() {
  command -v "$clang" > /dev/null && "$clang" -fsanitize=address,undefined,fuzzer "$probe/probe.cpp" -o "$probe/probe" 2> /dev/null
}

if ! works; then
  if [ -n "${CLANG:-}" ] || ! command -v apt-get > /dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "clang: no $clang with libFuzzer here; install clang and its compiler-rt by your system's packages (Debian: clang), name one in CLANG, or run this as root on Debian" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -q && apt-get install -q -y --no-install-recommends clang; } >&2
  # Older releases have the runtimes in the first package, and no second.
  works || apt-get install -q -y --no-install-recommends libclang-rt-dev >&2
  works || { echo "clang: Debian's package is installed, and cannot link libFuzzer" >&2; exit 1; }
fi
command -v "$clang"
