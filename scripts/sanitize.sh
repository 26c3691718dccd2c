#!/usr/bin/env bash
# The native tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer, at every level of kernels.
#
#   scripts/sanitize.sh PYTHON [WORKERS]
#
# PYTHON is that of an environment in which the tests run. The build goes to .venv-sanitize, which borrows its packages.
# Fails when the compiler has no sanitizers, when an error on purpose does not end the process, when a level was not
# tested, and at the first error that a sanitizer sees.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
workers=${2:-2}
cxx=${CXX:-g++}
place=.venv-sanitize

fail() {
  echo "sanitize: $*" >&2
  exit 1
}

preload=""
for library in libasan.so libubsan.so libstdc++.so; do
  path=$("$cxx" -print-file-name="$library" 2>/dev/null) || fail "$cxx cannot be run; install GCC or set CXX"
  case $path in
    /*) preload="$preload $(realpath "$path")" ;;
    *) fail "$cxx has no $library; install the sanitizer libraries of GCC or set CXX" ;;
  esac
done

rm -rf "$place"
"$python" -m venv --without-pip "$place"
site=$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Packages of PYTHON, without its hooks: the editable tailbound there stays out.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/borrowed.pth"
CXX=$cxx "$python" -m pip --python "$place/bin/python" install -q --no-deps --ignore-installed \
  -C build-dir=build/sanitize -C cmake.define.TAILBOUND_SANITIZE=ON -C install.strip=false .

# No leak check: the interpreter keeps what it has until it ends.
export LD_PRELOAD=${preload# }
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1

run="$PWD/$place/bin/python"
found=$(cd / && "$run" -c 'import tailbound._native as n; print(n.__file__)')
case $found in
  "$PWD/$place"/*) ;;
  *) fail "tests would use $found, which is not the build with sanitizers" ;;
esac

# Controls: what does no harm passes, an error on purpose ends the process with the sanitizer's words.
"$run" -c 'from tailbound._native import control; control("none", 64)' || fail "the control without an error failed"
for error in address:heap-buffer-overflow "undefined:signed integer overflow"; do
  said=$("$run" -c "from tailbound._native import control; control('${error%%:*}', 64)" 2>&1) &&
    fail "an error on purpose (${error%%:*}) went unseen"
  grep -q "${error#*:}" <<< "$said" || fail "an error on purpose (${error%%:*}) ended otherwise: $said"
done

report=build/sanitize/report.xml
rm -f "$report"
"$run" -m pytest -n "$workers" -p no:cacheprovider --junitxml="$report" --maxfail=1 \
  tests/native tests/engine/test_index*.py
"$run" -m pytest -n "$workers" -p no:cacheprovider --junitxml="${report%.xml}2.xml" --maxfail=1 \
  tests/engine/test_soundness.py -k "not reference and not torch"

unset LD_PRELOAD
"$python" - "$report" "${report%.xml}2.xml" << 'END'
import sys
import xml.etree.ElementTree as ET

from tailbound.engine import native

levels = native.levels()
for report in sys.argv[1:]:
    passed = [case.get("name") for case in ET.parse(report).iter("testcase") if case.find("skipped") is None]
    for level in levels.built:
        if level not in levels.cpu:
            print(f"sanitize: this machine cannot run {level}: not tested")
            continue
        count = sum(f"index/{level}" in name for name in passed)
        if count == 0:
            sys.exit(f"sanitize: no test of {level} ran ({report})")
        print(f"sanitize: {count} tests of {level} passed ({report})")
END
