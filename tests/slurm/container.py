"""A stand-in for a container runtime, where none can run: it has the kernel do what one has done, without an image.

The command gets a process, mount, IPC and cgroup namespace, of which it is the first process, as under Podman; the home
directory, Slurm's programs and configuration, those of munge, /run and /sys are not there. With --cleanenv its
environment is what Apptainer leaves of it then, with those variables that APPTAINERENV_NAME passes on. This process
stays between Slurm and the command, and passes signals on.

usage: container.py [--cleanenv] COMMAND [ARGUMENT...]        with HIDDEN_HOME, the home directory to be hidden
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

# From <linux/sched.h>.
NEW_MOUNTS, NEW_CGROUPS, NEW_IPC, NEW_PIDS = 0x20000, 0x2000000, 0x8000000, 0x20000000

HIDDEN = (
    *("srun", "sbatch", "salloc", "scontrol", "squeue", "sinfo", "sacct", "scancel"),
    *("munge", "unmunge"),
)
KEPT = ("PATH", "HOME", "LANG", "TERM", "PYTHONPATH")
PASSED = "APPTAINERENV_"

# Signals that are this process's own, or nobody's.
OWN = {signal.SIGCHLD, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP}


def environment(*, clean: bool) -> dict[str, str]:
    """What the command finds."""
    found = dict(os.environ)
    if clean:
        passed = {name.removeprefix(PASSED): value for name, value in found.items() if name.startswith(PASSED)}
        found = {name: found[name] for name in KEPT if name in found} | passed
    found.pop("SLURM_CONF", None)
    return found | {"APPTAINER_CONTAINER": "/image.sif"}


def mount(*words: str) -> None:
    """Mount something, as mount(8) has it."""
    subprocess.run(["mount", *words], check=True)


def hide(home: str) -> None:
    """Leave only what an image and the usual mounts would have."""
    mount("--make-rprivate", "/")
    found = (shutil.which(name, path=folder) for name in HIDDEN for folder in os.environ["PATH"].split(":"))
    for program in {Path(path).resolve() for path in found if path is not None}:
        mount("--bind", "/dev/null", str(program))
    mount("-t", "proc", "proc", "/proc")
    for place in (home, "/run", "/sys"):
        mount("-t", "tmpfs", "-o", "ro", "tmpfs", place)


def pass_signals_on(child: int, signums: set[signal.Signals]) -> int:
    """Wait for the command; returns its status, as a shell has it."""
    for signum in signums:
        signal.signal(signum, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> NoReturn:
    """Run the command."""
    words = sys.argv[1:]
    clean = words[0] == "--cleanenv"
    signums = set(signal.Signals) - OWN
    signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS | NEW_CGROUPS | NEW_IPC | NEW_PIDS):
        raise OSError(ctypes.get_errno(), "unshare")
    child = os.fork()
    if child:
        sys.exit(pass_signals_on(child, signums))
    command = words[clean:]
    hide(os.environ["HIDDEN_HOME"])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)
    os.execvpe(command[0], command, environment(clean=clean))


if __name__ == "__main__":
    main()
