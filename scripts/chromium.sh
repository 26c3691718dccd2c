#!/usr/bin/env bash
# A Chromium for the tests that open a page: the one that is here, or Debian's package. Needs root for the latter.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" > /dev/null; then
    echo "chromium: $(command -v "$name")"
    exit 0
  fi
done
if ! command -v apt-get > /dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "chromium: not here; install Chromium by your system's packages, or run this as root on Debian" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core
