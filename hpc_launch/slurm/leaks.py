"""What must not go along when a job is submitted: variables that describe the place it is submitted from. Pure.

sbatch gives the job its whole environment, and takes options from it besides (sbatch(1), INPUT ENVIRONMENT VARIABLES).
From inside a job, or a notebook in one, that is another job's layout, binding, ranks and devices, and srun obeys them:
`SLURM_CPU_BIND` pins every task to the CPUs of the notebook, `SLURM_NTASKS` starts as many tasks as the other job had.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

# How to reach Slurm, which is the same in every job of this user.
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")

# Wherever they come from: Slurm's words about another job, and another launcher's about its ranks.
_ALWAYS = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SPANK|_SLURM)_.*"
    r"|(PMI|PMI2|PMIX|PALS|OMPI_COMM_WORLD|MPI_LOCAL|TORCHELASTIC)_.*|PMI2?"
    r"|MASTER_(ADDR|PORT)|(LOCAL_|GROUP_|ROLE_|NODE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|ROLE_NAME"
    r"|HPC_LAUNCH_(ATTEMPT|HOST|JOB_DIRECTORY|STEP_SECRET)"
)

# What Slurm sets in a job, and a user may have set elsewhere.
_IN_A_JOB = re.compile(
    r"(CUDA|ROCR|HIP|NVIDIA)_VISIBLE_DEVICES|ZE_AFFINITY_MASK|GPU_DEVICE_ORDINAL|CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
    r"|ENVIRONMENT"
)

# What a launcher works out for its workers, and a user may have set elsewhere.
_IN_A_WORKER = re.compile(
    r"OMP_NUM_THREADS|CUDA_DEVICE_ORDER|(GLOO|NCCL)_SOCKET_IFNAME|TORCH_NCCL_ASYNC_ERROR_HANDLING"
    r"|HPC_LAUNCH_NOTICE_SIGNALS"
)

# What prologs name after the job.
_FOLDERS = ("TMPDIR", "TMP", "TEMP", "SCRATCH_DIR", "XDG_RUNTIME_DIR")


def for_submission(environ: Mapping[str, str], keep: Sequence[str] = ()) -> tuple[dict[str, str], tuple[str, ...]]:
    """Divide an environment into what a new job may have, and what is of the place where this runs.

    Args:
        environ: the environment.
        keep: names, or patterns such as `SBATCH_*`, of variables that go along nevertheless.

    Returns:
        The environment to submit with, and the names of what was dropped, in order.
    """
    job = environ.get("SLURM_JOB_ID", "")
    in_a_worker = "TORCHELASTIC_RUN_ID" in environ

    def leaks(name: str) -> bool:
        if name in KEPT or any(fnmatch.fnmatchcase(name, pattern) for pattern in keep):
            return False
        if _ALWAYS.fullmatch(name) or (job and _IN_A_JOB.fullmatch(name)):
            return True
        if in_a_worker and _IN_A_WORKER.fullmatch(name):
            return True
        return (
            bool(job) and name in _FOLDERS and re.search(rf"(?<!\d){re.escape(job)}(?!\d)", environ[name]) is not None
        )

    dropped = sorted(name for name in environ if leaks(name))
    return {name: value for name, value in environ.items() if name not in dropped}, tuple(dropped)
