"""The variables that carry the secret of a run: who gets them, and who must not.

Agents prove with a secret that they belong to one run (`HPC_LAUNCH_SECRET`, or the file that `HPC_LAUNCH_SECRET_FILE`
names). A step or job that hpc-launch starts itself gets one of its own, in its environment: arguments can be read by
every user of a node, and job scripts are kept. Workers get none: they run foreign code, which prints and uploads
environments.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

# These are the names of variables, and no secrets themselves.
SECRET = "HPC_LAUNCH_SECRET"  # noqa: S105 - as is said above
"""A secret that the user sets."""

SECRET_FILE = "HPC_LAUNCH_SECRET_FILE"  # noqa: S105 - as above
"""The file that has it, where the user keeps it in one."""

STEP_SECRET = "HPC_LAUNCH_STEP_SECRET"  # noqa: S105 - as above
"""What hpc-launch gives to the step or job that it starts."""

VARIABLES = frozenset({SECRET, SECRET_FILE, STEP_SECRET})
"""All of them."""

_BYTES = 32


def with_own_secret(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a step or job that is started now, with a secret of its own.

    One that was inherited belongs to the step or job from which this one is started. The user's own secret goes along.
    """
    return {**environ, STEP_SECRET: secrets.token_hex(_BYTES)}


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for foreign code."""
    return {name: value for name, value in environ.items() if name not in VARIABLES}
