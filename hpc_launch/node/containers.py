"""Containers of a cluster: whether this process runs in one, by what their runtimes set for what is inside."""

from __future__ import annotations

from collections.abc import Mapping

# Apptainer, SingularityCE and Charliecloud. Runtimes that are common elsewhere too, such as Podman and Docker, say
# nothing about where this is.
_VARIABLES = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "CH_RUNNING")


def in_container(environ: Mapping[str, str]) -> bool:
    """Whether a runtime that is made for clusters has started this."""
    return any(environ.get(name) for name in _VARIABLES)
