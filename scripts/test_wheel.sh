#!/usr/bin/env bash
# What a stranger gets: the wheel in an empty environment, no compiler in reach.
#
#   scripts/test_wheel.sh PYTHON [FOLDER]
#
# FOLDER holds one wheel (`make wheel`). Runs `tailbound doctor`, `tailbound verify` and the README's first example, with
# the native module and without it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
folder=${2:-dist}
minutes=${MINUTES:-0.2}
place=$PWD/build/wheel-test

fail() {
  echo "test_wheel: $*" >&2
  exit 1
}

wheels=("$folder"/tailbound-*.whl)
[[ ${#wheels[@]} == 1 && -f ${wheels[0]} ]] || fail "no wheel, or more than one, in $folder; make wheel"
wheel=$(realpath "${wheels[0]}")
rm -rf "$place"
"$python" -m venv "$place/venv"
"$place/venv/bin/pip" install -q -c constraints/dev.txt "$wheel"

awk '/^```python$/ { inside = 1; next } /^```$/ && inside { exit } inside' README.md > "$place/example.py"
grep -q tailbound.attention "$place/example.py" || fail "no example at the head of README.md"

cd "$place"
export PATH="$place/venv/bin"
unset TAILBOUND_ISA PYTHONPATH
for compiler in cc c++ gcc g++ clang clang++ cmake; do
  ! command -v "$compiler" > /dev/null || fail "$compiler is in reach"
done

echo "== with the native module"
tailbound doctor
python example.py
tailbound verify --minutes "$minutes" --json > verify.json
python - << 'END'
import json

import torch

from tailbound import KVIndex
from tailbound.engine import native

found, levels = json.load(open("verify.json")), native.levels()
best = [level for level in levels.built if level in levels.cpu][-1]
assert found["violations"] == 0 and found["certificates"] > 0, found
index = KVIndex(torch.randn(1, 2, 300, 16), torch.randn(1, 2, 300, 16))
assert index.attend(torch.randn(1, 4, 1, 16), epsilon=0.1).stats.isa == best
print(f"{found['certificates']:,} certificates, all hold; {found['answered_by']}")
END

echo "== without it"
native=$(python -c 'import tailbound._native as native; print(native.__file__)')
python -c "import os; os.rename('$native', '$place/native')"
tailbound doctor | grep "native module" || fail "doctor does not say that the native module is missing"
python example.py
tailbound verify --minutes "$minutes" --json > verify.json
python - << 'END'
import json

import torch

from tailbound import KVIndex

found = json.load(open("verify.json"))
assert found["violations"] == 0 and set(found["answered_by"]) <= {"reference", "torch", "index/torch"}, found
index = KVIndex(torch.randn(1, 2, 300, 16), torch.randn(1, 2, 300, 16))
assert index.attend(torch.randn(1, 4, 1, 16), epsilon=0.1).stats.impl == "torch"
try:
    index.attend(torch.randn(1, 4, 1, 16), epsilon=0.1, impl="native")
except ValueError as error:
    assert "native module is missing" in str(error), error
else:
    raise SystemExit("impl='native' was served without a native module")
print(f"{found['certificates']:,} certificates, all hold; {found['answered_by']}")
END
python -c "import os; os.rename('$place/native', '$native')"
echo "test_wheel: passed: $(basename "$wheel")"
