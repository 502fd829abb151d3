#!/usr/bin/env bash
# Install what the tests need for their private Slurm clusters; start none of its services.
#
# They run two releases of Slurm. The one of this Debian (bookworm: 22.05) is installed. The one of the next (trixie:
# 24.11) is unpacked into a directory of its own, and nothing else on the machine knows of it: its programs are told to
# use the C library and the others that lie beside them. What they start, such as jobs, is as with any Slurm.
# Where everything is there already, this ends in a moment.
set -euo pipefail

packages=(slurm-wlm slurmdbd mariadb-server munge iproute2 patchelf strace shellcheck)

suite=trixie
root=/var/cache/hpc-launch-tests/slurm-24.11
modern=(
    slurmctld slurmd slurmdbd slurm-client slurm-wlm-basic-plugins slurm-wlm-mysql-plugin
    # What those are linked to, as far as a bare Debian goes without it or has an older one.
    libaudit1 libc6 libcap-ng0 libcap2 libdbus-1-3 libhwloc15 libjson-c5 liblz4-1 libmariadb3 libmunge2 libncursesw6
    libnuma1 libpam0g libreadline8t64 libssl3t64 libsystemd0 libtinfo6 libudev1 libxxhash0 libyaml-0-2 libzstd1 zlib1g
)
# What is below $root says so itself: after a change of this list it is made anew.
contents="$suite ${modern[*]}"

is_installed() {
    [[ $(dpkg-query --show --showformat='${Status}' "$1" 2>/dev/null) == "install ok installed" ]]
}

is_unpacked() {
    [[ $(cat "$root/contents" 2>/dev/null) == "$contents" ]]
}

missing=()
for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
done
if is_unpacked && (( ! ${#missing[@]} )); then
    exit 0
fi
if (( EUID )) || ! command -v apt-get >/dev/null; then
    what=("${missing[@]}")
    is_unpacked || what+=("Slurm 24.11 in $root")
    echo "The tests on Slurm need root, Debian and: ${what[*]}."
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

install_packages() {
    echo "Installing $*; their services are not started."
    # Debian's way to say so: package scripts ask this file before they start a service.
    local policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -rf "$scratch" /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt-get -qq update
    apt-get -qq install --no-install-recommends "$@" >/dev/null
}

# Fetch packages of the other suite from the mirror of this one, without a word to the machine's own apt.
fetch() {
    local mirror code keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    code=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016 # apt's variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $code" "Component: main" | sed -n 1p)
    mirror=${mirror:-http://deb.debian.org/debian}
    mkdir -p "$scratch"/{lists,archives}/partial "$scratch/packages"
    : >"$scratch/status"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$scratch/sources.list"
    cat >"$scratch/apt.conf" <<END
Dir::Etc::SourceList "$scratch/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$scratch";
Dir::State::Status "$scratch/status";
Dir::Cache "$scratch";
APT::Sandbox::User "root";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
    if ! (
        export APT_CONFIG="$scratch/apt.conf"
        cd "$scratch/packages" && apt-get -qq update && apt-get -qq download "${modern[@]}"
    ); then
        echo "Slurm 24.11 cannot be fetched: the tests need the packages of Debian $suite, from $mirror." >&2
        exit 1
    fi
}

unpack() {
    local new=$scratch/new library loader program
    mkdir "$new"
    for package in "$scratch"/packages/*.deb; do
        dpkg-deb --extract "$package" "$new"
    done
    library=$(cd "$new" && echo usr/lib/*-linux-gnu)
    loader=$root/$library/$(basename "$(patchelf --print-interpreter "$new/usr/bin/srun")")
    # A RUNPATH would hold for the program alone, a RPATH does for its plugins and their libraries too.
    local paths=(--force-rpath --set-rpath "$root/$library/slurm-wlm:$root/$library")
    for program in "$new"/usr/{bin,sbin}/*; do
        patchelf --set-interpreter "$loader" "${paths[@]}" "$program"
    done
    find "$new/$library/slurm-wlm" -name "*.so" -type f -exec patchelf "${paths[@]}" {} +
    for program in slurmctld slurmd slurmstepd; do # Debian's alternatives
        [[ -e $new/usr/sbin/$program ]] || mv "$new/usr/sbin/$program-wlm" "$new/usr/sbin/$program"
    done
    rm "$new/$library"/slurm-wlm/mpi_pmix* # needs a library that no test does, and every daemon would complain
    ln -s "$library/slurm-wlm" "$new/plugins"
    chmod 755 "$new"
    rm -rf "$root"
    mv "$new" "$root"
    if [[ $("$root/usr/sbin/slurmd" -V) != "slurm-wlm 24.11."* ]]; then
        echo "Slurm 24.11 does not start from $root: $("$root/usr/sbin/slurmd" -V 2>&1)" >&2
        exit 1
    fi
    echo "$contents" >"$root/contents"
}

if (( ${#missing[@]} )); then
    install_packages "${missing[@]}"
fi
mkdir -p "$(dirname "$root")"
exec {lock}>"$(dirname "$root")/lock" # two checkouts may do this at a time
flock "$lock"
if ! is_unpacked; then
    echo "Unpacking Slurm 24.11 into $root."
    fetch
    unpack
fi
