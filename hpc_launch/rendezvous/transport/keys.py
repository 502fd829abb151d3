"""The secrets of an agent, and the keys of its run's place that are derived from them.

Only who has a secret of the user can speak with the agents of a run. Each agent collects all that it has; two agents
use the first that both have.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch.errors import UsageError
from hpc_launch.rendezvous.transport import munge, wire
from hpc_launch.rendezvous.transport.handshake import Known, Method, place_key
from hpc_launch.rendezvous.transport.munge import Munge

SECRET, SECRET_FILE, STEP_SECRET = "HPC_LAUNCH_SECRET", "HPC_LAUNCH_SECRET_FILE", "HPC_LAUNCH_STEP_SECRET"
MIN_LENGTH = 16
"""The fewest characters of a secret."""
_MAX_FILE = 4096


@dataclass(frozen=True)
class Secret:
    """A key of the run's place.

    Attributes:
        source: where it comes from, in words.
        method: the same, as the first frame of a connection names it.
        key: 32 bytes, derived for the place.
    """

    source: str
    method: Method
    key: bytes = field(repr=False)


@dataclass
class Keyring:
    """What an agent has to prove who it is.

    Attributes:
        place: where the run happens; keys are derived for it.
        secrets: its keys, strongest first.
        munge: the commands of munge, where they work.
        insecure: whether agents without a secret are believed as well.
        skipped: sources that were left out, and why.
        job_file: where the leader leaves a key; None where there is no such place, or it was read.
    """

    place: str
    secrets: tuple[Secret, ...]
    munge: Munge | None = None
    insecure: bool = False
    skipped: tuple[str, ...] = ()
    job_file: Path | None = None
    place_key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.place_key = place_key(self.place)

    @property
    def empty(self) -> bool:
        """Whether there is nothing by which others could be known."""
        return not self.known

    @property
    def described(self) -> str:
        """What there is, in words."""
        names = [secret.source for secret in self.secrets]
        if self.munge is not None:
            names.append("munge")
        if self.insecure:
            names.append("--insecure-rendezvous")
        return ", ".join(names) or "none"

    @property
    def known(self) -> tuple[Known, ...]:
        """What is offered to others, strongest first."""
        found = [Known(secret.method, secret.key, secret.key) for secret in self.secrets]
        if self.munge is not None:
            found.append(Known(Method.MUNGE, _public_key(self.place, b"munge"), None))
        if self.insecure:
            key = _public_key(self.place, b"insecure")
            found.append(Known(Method.INSECURE, key, key))
        return tuple(found)

    def refresh(self) -> bool:
        """Read the job file if it was not there yet; says whether there is a new secret."""
        if self.job_file is None:
            return False
        found, _ = _read_private(self.job_file)
        if found is None:
            return False
        secret = Secret(f"key file {self.job_file}", Method.JOB_FILE, _derive(found, self.place))
        self.job_file = None
        self.secrets = (*self.secrets, secret)
        return True


def collect(
    environ: Mapping[str, str],
    place: str,
    *,
    job_file: Path | None,
    leader: bool,
    insecure: bool = False,
    munge_socket: Path | None = None,
) -> Keyring:
    """What this agent has to prove who it is.

    Args:
        environ: the process's environment.
        place: where the run happens.
        job_file: where the leader leaves a key for the others; None where there is no such place.
        leader: whether this agent writes it; the others read it, once it is there.
        insecure: whether agents without a secret are believed as well.
        munge_socket: where munged listens, if not in the usual place.

    Raises:
        UsageError: if a secret that the user gave is unusable.
    """
    found: list[Secret] = []
    skipped: list[str] = []
    for source, method, value in _given(environ):
        found.append(Secret(source, method, _derive(value, place)))
    home = _config_home(environ)
    if home is not None:
        path = home / "hpc-launch" / "key"
        value, why = _made_once(path, make_parents=True)
        if value is not None:
            found.append(Secret(f"key file {path}", Method.KEY_FILE, _derive(value, place)))
        else:
            skipped.append(f"key file {path}: {why}")
    tools = munge.find(environ.get("PATH"), munge_socket)
    if isinstance(tools, str):
        skipped.append(f"munge: {tools}")
    keyring = Keyring(
        place, tuple(found), tools if isinstance(tools, Munge) else None, insecure, tuple(skipped), job_file
    )
    if job_file is not None and leader:
        _made_once(job_file, make_parents=False)
    keyring.refresh()
    return keyring


def _derive(secret: bytes, place: str) -> bytes:
    return wire.hkdf(secret, b"hpc-launch secret", place.encode())


def _public_key(place: str, what: bytes) -> bytes:
    return wire.hkdf(place.encode(), b"hpc-launch", what)


def _given(environ: Mapping[str, str]) -> list[tuple[str, Method, bytes]]:
    found = []
    if SECRET in environ:
        found.append((SECRET, Method.SECRET, _checked(environ[SECRET].encode(), SECRET)))
    elif SECRET_FILE in environ:
        path = Path(environ[SECRET_FILE])
        value, why = _read_private(path)
        if value is None:
            raise UsageError(f"{SECRET_FILE}: {path}: {why}", option=SECRET_FILE)
        found.append((SECRET_FILE, Method.SECRET, value))
    if environ.get(STEP_SECRET):
        found.append((STEP_SECRET, Method.STEP_SECRET, _checked(environ[STEP_SECRET].encode(), STEP_SECRET)))
    return found


def _checked(value: bytes, source: str) -> bytes:
    value = value.strip()
    if len(value) < MIN_LENGTH:
        raise UsageError(
            f"{source} has {len(value)} characters, fewer than {MIN_LENGTH}; openssl rand -hex 32 makes a good one",
            option=source,
        )
    return value


def _config_home(environ: Mapping[str, str]) -> Path | None:
    if environ.get("XDG_CONFIG_HOME"):
        return Path(environ["XDG_CONFIG_HOME"])
    return Path(environ["HOME"]) / ".config" if environ.get("HOME") else None


def _read_private(path: Path) -> tuple[bytes | None, str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return None, str(error.strerror)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None, "not a private file of this user (chmod 600)"
        value = file.read(_MAX_FILE + 1).strip()
    if not MIN_LENGTH <= len(value) <= _MAX_FILE:
        return None, f"it has {len(value)} bytes, fewer than {MIN_LENGTH}"
    return value, ""


def _made_once(path: Path, *, make_parents: bool) -> tuple[bytes | None, str]:
    found, why = _read_private(path)
    if found is not None or path.is_symlink() or path.exists():
        return found, why
    try:
        if make_parents:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(secrets.token_hex(32).encode() + b"\n")
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
    except OSError as error:
        return None, str(error.strerror)
    return _read_private(path)
