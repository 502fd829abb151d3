"""What a run had around it, for `job.json`: versions of libraries, and the variables that training depends on."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

from hpc_launch import redaction

# Variables by the beginnings of their names: of launchers, of Slurm, of what computes and what communicates.
_RELEVANT = re.compile(
    r"(?:HPC_LAUNCH|PET|TORCH|TORCHELASTIC|PYTORCH|NCCL|RCCL|GLOO|UCX|FI|MPI|MPICH|OMPI|I_MPI|CUDA|HIP|ROCR|HSA|ZE|CCL|OMP"
    r"|KMP|GOMP|MKL|OPENBLAS|NUMEXPR|SLURM|SBATCH|PYTHON|XLA|TRITON|HF|TRANSFORMERS|WANDB|APPTAINER|SINGULARITY)_?[A-Z0-9_]*"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CONDA_PREFIX|CONDA_DEFAULT_ENV|LOADEDMODULES|TMPDIR"
)

# A value that is longer is cut.
_LONGEST = 1000

# Packages of which people ask.
_PACKAGES = ("numpy", "torchvision", "torchaudio", "triton", "transformers", "lightning", "deepspeed", "accelerate")


def describe_environment(environ: Mapping[str, str], secret_names: Sequence[str] = ()) -> dict[str, Any]:
    """Describe this node's software, and its environment.

    Args:
        environ: the agent's environment.
        secret_names: more names of variables that hold secrets (`redaction`).

    Returns:
        `software`, versions by name, and `environment`, values by name; what looks like a secret is left out.
    """
    return {"software": _software(), "environment": relevant(environ, secret_names)}


def relevant(environ: Mapping[str, str], secret_names: Sequence[str] = ()) -> dict[str, str]:
    """The variables that training may depend on, by name; those of secrets are left out. Pure."""
    return {
        name: shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
        for name, value in sorted(environ.items())
        if _RELEVANT.fullmatch(name) and not redaction.names_secret_variable(name, secret_names)
        for shown in (redaction.redacted_text(value, secret_names),)
    }


def _software() -> dict[str, str]:
    """Versions that can be had without a device being touched."""
    found = {"CUDA": torch.version.cuda, "HIP": torch.version.hip, "NCCL": _nccl(), "system": _system()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {name: version for name, version in found.items() if version}


def _nccl() -> str:
    """NCCL's version; empty in builds without it. What is asked is the library, not a device."""
    try:
        return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]  # as torch has it
    except (AttributeError, RuntimeError):
        return ""


def _system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return ""
