"""The launcher for PyTorch on Slurm: `srun hpc-launch train.py` is all there is to type.

From Python: `hpc_launch.submit(train, config, nodes=2, gpus_per_node=4).results()`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_launch import errors, runtime, submitit
    from hpc_launch.api.executor import Executor, submit
    from hpc_launch.api.job_handle import Job

__version__ = "0.1.0"

__all__ = ["Executor", "Job", "errors", "runtime", "submit", "submitit"]

# Where each is. `import hpc_launch` imports none of them: the launcher itself does so on every node.
_PLACES = {"Executor": "api.executor", "Job": "api.job_handle", "submit": "api.executor"}
_MODULES = ("errors", "runtime", "submitit")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"hpc_launch.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(f"hpc_launch.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'hpc_launch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
