#!/usr/bin/env bash
# Install the Debian packages that the tests need for their private Slurm clusters; start none of their services.
set -euo pipefail

packages=(slurm-wlm slurmdbd mariadb-server munge iproute2 strace shellcheck)

missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null) == "install ok installed" ]] ||
        missing+=("$package")
done
(( ${#missing[@]} )) || exit 0

if (( EUID )) || ! command -v apt-get >/dev/null; then
    echo "The tests on Slurm need root and ${missing[*]} (Debian's names)."
    exit 0
fi

echo "Installing ${missing[*]}; their services are not started."
# Debian's way to say so: package scripts ask this file before they start a service.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
