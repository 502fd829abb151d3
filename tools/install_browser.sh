#!/usr/bin/env bash
# Install the browser that the tests look at reports with: on Debian as root, the smallest that there is.
# Where there is one already, this ends in a moment.
set -euo pipefail

for program in chromium-headless-shell chromium chromium-browser google-chrome; do
    if command -v "$program" >/dev/null; then
        exit 0
    fi
done
if (( EUID )) || ! command -v apt-get >/dev/null; then
    echo "The tests of reports in a browser need one: chromium, for instance."
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
echo "Installing chromium-headless-shell and a font."
install=(apt-get -qq install --no-install-recommends chromium-headless-shell fonts-dejavu-core)
"${install[@]}" >/dev/null 2>&1 || { apt-get -qq update && "${install[@]}" >/dev/null; }
