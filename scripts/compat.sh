#!/usr/bin/env bash
# The tests of tailbound.hf on several versions of transformers: compat.sh PYTHON VERSION...
# Each version has its environment in build/compat/, kept from run to run. The wheel is built once.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
folder=build/compat
mkdir -p "$folder"
rm -f "$folder"/*.whl
grep -v '^transformers==' constraints/dev.txt >"$folder/constraints.txt"
"$python" -m pip wheel -q --no-deps -w "$folder" .
failed=()
for version in "$@"; do
    venv=$folder/$version
    test -x "$venv/bin/python" || "$python" -m venv "$venv"
    "$venv/bin/pip" install -q -c "$folder/constraints.txt" "transformers==$version" pytest hypothesis beartype \
        "tailbound[hf,report] @ file://$PWD/$(ls "$folder"/*.whl)"
    "$venv/bin/pip" install -q --no-deps --force-reinstall "$folder"/*.whl
    echo "transformers $version"
    "$venv/bin/python" -m pytest tests/hf || failed+=("$version")
done
if ((${#failed[@]})); then
    echo "failed with transformers ${failed[*]}" >&2
    exit 1
fi
