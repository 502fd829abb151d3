"""The secrets of an agent, and the keys of its run's place that are derived from them.

Agents believe each other if they have a secret of the user in common. Each collects all that it has; two agents use the
first of the listening side's keys that the connecting side has too.
"""

from __future__ import annotations

import os
import pwd
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch.errors import UsageError
from hpc_launch.rendezvous.transport import framing, munge, secret_files
from hpc_launch.rendezvous.transport.handshake import KeyMethod, KnownKey, place_key
from hpc_launch.rendezvous.transport.munge import Munge
from hpc_launch.rendezvous.transport.secret_files import AbsentSecretFile, UnusableSecretFile
from hpc_launch.secret_variables import SECRET, SECRET_FILE, STEP_SECRET

MIN_BYTES = 16
"""The fewest bytes of a secret: those of `openssl rand -hex 32` are 64."""

_MADE_BYTES = 32
_ADVICE = "make one with: openssl rand -hex 32"


@dataclass(frozen=True)
class Secret:
    """A key of the run's place.

    Attributes:
        source: where it comes from, in words.
        method: the same, as the first frame of a connection names it.
        key: 32 bytes, derived for the place.
    """

    source: str
    method: KeyMethod
    key: bytes = field(repr=False)


class Keyring:
    """What an agent has to prove who it is.

    Attributes:
        place: where the run happens; keys are derived for it.
        place_key: the id of the place for first frames.
        secrets: its keys, strongest first.
        known: what is offered to others, strongest first.
        munge: the commands of munge, where they work.
        insecure: whether agents without a secret are believed as well.
        skipped: sources that were left out, and why, for -v.
    """

    def __init__(
        self,
        place: str,
        found: tuple[Secret, ...] = (),
        *,
        munge: Munge | None = None,
        insecure: bool = False,
        skipped: tuple[str, ...] = (),
        job_file: Path | None = None,
    ) -> None:
        """Know some secrets.

        Args:
            place: where the run happens.
            found: keys, strongest first.
            munge: the commands of munge, where they work.
            insecure: whether agents without a secret are believed as well.
            skipped: sources that were left out, and why.
            job_file: where the leader leaves a key that was not read yet.
        """
        self.place = place
        self.place_key = place_key(place)
        self.secrets = found
        self.munge = munge
        self.insecure = insecure
        self.skipped = skipped
        self._job_file = job_file
        self.known: tuple[KnownKey, ...] = ()
        self._offer()

    def __repr__(self) -> str:
        return f"<Keyring of {self.place}: {self.described}>"

    @property
    def empty(self) -> bool:
        """Whether nothing is there by which others could be known."""
        return not self.known

    @property
    def described(self) -> str:
        """What is there, in words."""
        names = [secret.source for secret in self.secrets]
        names += ["munge"] if self.munge is not None else []
        names += ["--insecure-rendezvous"] if self.insecure else []
        return ", ".join(names) or "none"

    @property
    def expects_more(self) -> bool:
        """Whether the first agent may still leave a key in the job directory."""
        return self._job_file is not None

    def refresh(self) -> bool:
        """Read the job file if it was not there yet; says whether there is a new secret."""
        if self._job_file is None:
            return False
        path = self._job_file
        try:
            value = _long_enough(secret_files.read_secret_file(path))
        except AbsentSecretFile:
            return False
        except UnusableSecretFile as error:
            self._skip_once(f"key file: {_about(path, str(error))}")
            return False
        self._job_file = None
        self.secrets = (*self.secrets, Secret(f"key file {path}", KeyMethod.JOB_FILE, derive_key(value, self.place)))
        self._offer()
        return True

    def _skip_once(self, why: str) -> None:
        if why not in self.skipped:
            self.skipped = (*self.skipped, why)

    def _offer(self) -> None:
        found = [KnownKey(secret.method, secret.key, secret.key) for secret in self.secrets]
        if self.munge is not None:
            found.append(KnownKey(KeyMethod.MUNGE, _public_key(self.place, b"munge"), None))
        if self.insecure:
            key = _public_key(self.place, b"insecure")
            found.append(KnownKey(KeyMethod.INSECURE, key, key))
        self.known = tuple(found)


def collect_keys(
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
        leader: whether this agent makes it; the others read it once it is there (`Keyring.refresh`).
        insecure: whether agents without a secret are believed as well.
        munge_socket: where munged listens, if not in the usual place.

    Raises:
        UsageError: if a secret that was given is unusable.
    """
    found = [Secret(name, method, derive_key(value, place)) for name, method, value in _given(environ)]
    skipped: list[str] = []
    for path, value, why in _own_key_files(environ):
        if value is None:
            skipped.append(f"key file: {_about(path, why)}")
        else:
            found.append(Secret(f"key file {path}", KeyMethod.KEY_FILE, derive_key(value, place)))
    if job_file is not None and leader:
        try:
            secret_files.make_secret_file(job_file, _fresh())
        except UnusableSecretFile as error:
            skipped.append(f"key file: {_about(job_file, str(error))}")
    # A start waits for a command of munge only where there may be nothing else.
    tools = munge.find_munge(environ.get("PATH"), munge_socket, ask=not found)
    if isinstance(tools, str):
        skipped.append(f"munge: {tools}")
    keyring = Keyring(
        place,
        tuple(found),
        munge=tools if isinstance(tools, Munge) else None,
        insecure=insecure,
        skipped=tuple(skipped),
        job_file=job_file,
    )
    keyring.refresh()
    return keyring


def derive_key(secret: bytes, place: str) -> bytes:
    """The key of a place that is made of a secret."""
    return framing.hkdf(secret, b"hpc-launch secret", place.encode(errors="surrogateescape"))


def _public_key(place: str, what: bytes) -> bytes:
    return framing.hkdf(place.encode(errors="surrogateescape"), b"hpc-launch", what)


def _about(path: Path, why: str) -> str:
    """Why a file does not count, with its path once."""
    return why if str(path.parent) in why else f"{path}: {why}"


def _fresh() -> bytes:
    return secrets.token_hex(_MADE_BYTES).encode() + b"\n"


def _given(environ: Mapping[str, str]) -> Iterator[tuple[str, KeyMethod, bytes]]:
    """The secrets that the environment has, or names a file of; of the user's two variables the first counts."""
    if SECRET in environ:
        yield SECRET, KeyMethod.SECRET, _checked(environ[SECRET], SECRET)
    elif SECRET_FILE in environ:
        path = Path(environ[SECRET_FILE])
        try:
            yield (
                f"{SECRET_FILE} ({path})",
                KeyMethod.SECRET,
                _long_enough(secret_files.read_secret_file(path, anywhere=True)),
            )
        except UnusableSecretFile as error:
            raise UsageError(f"{SECRET_FILE}: {_about(path, str(error))}", option=SECRET_FILE) from None
    if STEP_SECRET in environ:
        yield STEP_SECRET, KeyMethod.STEP_SECRET, _checked(environ[STEP_SECRET], STEP_SECRET)


def _checked(text: str, variable: str) -> bytes:
    try:
        return _long_enough(os.fsencode(text).strip())
    except UnusableSecretFile as error:
        raise UsageError(f"{variable}: {error}", option=variable) from None


def _long_enough(value: bytes) -> bytes:
    if len(value) < MIN_BYTES:
        raise UnusableSecretFile(f"it has {len(value)} bytes, expected {MIN_BYTES} at least; {_ADVICE}")
    return value


def _own_key_files(environ: Mapping[str, str]) -> Iterator[tuple[Path, bytes | None, str]]:
    """The key files of the user: path, content, and why there is none.

    One is made where there is none. Where XDG_CONFIG_HOME is set, the usual place counts too: perhaps it is set on one
    node only.
    """
    folders = [Path(environ["XDG_CONFIG_HOME"])] if environ.get("XDG_CONFIG_HOME", "").startswith("/") else []
    home = environ.get("HOME") or _home_of_user()
    folders += [Path(home, ".config")] if home.startswith("/") else []
    paths = list(dict.fromkeys(folder / "hpc-launch" / "key" for folder in folders))
    read = [(path, *_read(path)) for path in paths]
    yield from [one for one in read if one[1] is not None]
    yield from [one for one in read if one[1] is None and one[2] != _ABSENT]
    if paths and all(why == _ABSENT for _, _, why in read):
        yield (paths[0], *_make(paths[0]))


_ABSENT = "it is not there"


def _read(path: Path) -> tuple[bytes | None, str]:
    try:
        return _long_enough(secret_files.read_secret_file(path)), ""
    except AbsentSecretFile:
        return None, _ABSENT
    except UnusableSecretFile as error:
        return None, str(error)


def _make(path: Path) -> tuple[bytes | None, str]:
    try:
        # A home is not made: where it is missing, what is written in its place is nobody else's to find.
        if not path.parents[2].is_dir():
            return None, f"{path.parents[2]} is not there"
        secret_files.make_directories(path.parent)
        return _long_enough(secret_files.make_secret_file(path, _fresh())), ""
    except UnusableSecretFile as error:
        return None, str(error)


def _home_of_user() -> str:
    """The user's home where the environment has none, as in a step with --export=NONE; empty where there is none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""
