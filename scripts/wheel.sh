#!/usr/bin/env bash
# A source archive, and from it, in a clean environment, a wheel with every level of kernels: wheel.sh PYTHON [FOLDER]
# auditwheel reads which system libraries the wheel needs, and names it after the oldest Linux that has them.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
folder=${2:-dist}
raw=build/raw
rm -rf "$raw"
mkdir -p "$folder" "$raw"
rm -f "$folder"/tailbound-*
"$python" -m build -q --outdir "$raw" .
mv "$raw"/*.tar.gz "$folder"
if [[ $(uname -s) == Linux ]]; then
  PATH="$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH" "$python" -m auditwheel -v repair -w "$folder" "$raw"/*.whl > "$raw/auditwheel.txt" 2>&1 ||
    { cat "$raw/auditwheel.txt" >&2; exit 1; }
else
  mv "$raw"/*.whl "$folder"
fi
ls "$folder"/tailbound-*
