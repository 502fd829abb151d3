"""The releases of Slurm that clusters run, and where their programs are."""

import os
from pathlib import Path
from typing import Literal, get_args

Release = Literal["22.05", "24.11"]

RELEASES: tuple[Release, ...] = get_args(Release)

NEWEST = RELEASES[-1]

# Where tools/install_slurm.sh puts the releases that are not the machine's own.
CACHE = Path("/var/cache/hpc-launch-tests")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def named(name: str) -> Release:
    """Return the release that is called so; raises ValueError if there is none."""
    for release in RELEASES:
        if release == name:
            return release
    raise ValueError(f"HPC_LAUNCH_TEST_SLURM is one of {', '.join(RELEASES)}, unlike {name!r}")


# What clusters run where nothing else is said: the whole suite is to pass with each.
DEFAULT = named(os.environ.get("HPC_LAUNCH_TEST_SLURM", RELEASES[0]))


def root(release: Release) -> Path | None:
    """Say below which directory the programs of a release are; None if they are the machine's own."""
    return None if release == "22.05" else CACHE / f"slurm-{release}"


def programs(release: Release) -> str:
    """Say where the programs of a release are to be found first, as the beginning of a PATH."""
    place = root(release)
    return f"{place}/usr/bin:{place}/usr/sbin:" if place else ""


def path(release: Release) -> str:
    """Return a PATH for the daemons of a release, which owes nothing to the caller's."""
    return programs(release) + SYSTEM_PATH


def slurmd_options(release: Release) -> list[str]:
    """Return the options that slurmd needs to start its own release's slurmstepd, and no other's."""
    place = root(release)
    return ["-d", f"{place}/usr/sbin/slurmstepd"] if place else []


def plugins(release: Release) -> dict[str, str]:
    """Return the lines of slurm.conf and of slurmdbd.conf that say where a release has its plugins."""
    place = root(release)
    return {"PluginDir": f"{place}/plugins"} if place else {}
