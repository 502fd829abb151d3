"""The settings files: where they are looked for, and what they say."""

from __future__ import annotations

import difflib
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_launch.errors import UsageError, reason
from hpc_launch.file_ownership import distrust
from hpc_launch.home import expand_home
from hpc_launch.settings.layer import SettingsLayer, Table, layer_of
from hpc_launch.settings.option_values import Origin
from hpc_launch.settings.table import specs

# The directory of the site's file.
SITE = Path("/etc/hpc-launch")

# The profiles that come with hpc-launch.
SHIPPED = Path(__file__).parents[1] / "profiles"

_FILE = "config.toml"
_PROJECT_FILE, _SHARED_FILE, _OWN_KEY = "hpc-launch.toml", "pyproject.toml", "hpc-launch"
_SHARED_TABLE = f"tool.{_OWN_KEY}"
_PROFILES = "profiles"

# The directories in which others may change settings and templates: a key of the user's and the site's file.
_TRUSTED = "trusted"

# For what the user has named, or what comes with hpc-launch: whoever owns it.
ALL = (Path("/"),)


@dataclass(frozen=True)
class SearchedPlace:
    """A place where settings were looked for, and whether there were any.

    Attributes:
        origin: whose settings these are.
        path: the file.
        found: what was there.
        why: why they do not count; empty where they do.
    """

    origin: Origin
    path: Path
    found: str
    why: str = ""


@dataclass(frozen=True)
class SettingsFiles:
    """What files say.

    Attributes:
        layers: their tables, the strongest first.
        looked: where settings were looked for.
    """

    layers: tuple[SettingsLayer, ...] = ()
    looked: tuple[SearchedPlace, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each file that is there and does not count."""
        return tuple(f"{looked.path} is not used: {looked.why}" for looked in self.looked if looked.why)


@dataclass(frozen=True)
class _Document:
    """The settings of one file: those for all runs, those of its profiles, and the directories that it trusts."""

    own: SettingsLayer
    profiles: Mapping[str, SettingsLayer]
    trusted: tuple[Path, ...] = ()


def load_settings_files(
    environ: Mapping[str, str], directory: Path, profile: str = "", site: Path | None = None
) -> SettingsFiles:
    """Read the files that are there.

    Args:
        environ: the environment, which says where the user's file is, and may name a profile.
        directory: the working directory.
        profile: the profile that a flag names.
        site: the directory of the site's file, if not the usual one.

    Raises:
        UsageError: for a file that cannot be read or has what it cannot have, and a profile that is not there.
    """
    search = _Search(environ.get("HOME", ""))
    user = search.user(environ.get("XDG_CONFIG_HOME", ""))
    found_site = search.file(Origin.SITE, (site or SITE) / _FILE)
    search.trusted = tuple(path for document in (user, found_site) if document for path in document.trusted)
    project = search.project(directory)
    documents = [document for document in (project, user, found_site) if document is not None]
    option = specs()["profile"]
    named = search.profile(profile or environ.get(option.variable, ""), directory, documents)
    if isinstance(named, str):
        raise UsageError(f"{option.flag if profile else option.variable}: {named}", option=option.flag)
    ranks = list(Origin)
    looked = sorted(search.looked, key=lambda entry: ranks.index(entry.origin))
    return SettingsFiles((*named, *(document.own for document in documents)), tuple(looked))


def trusted_directories(environ: Mapping[str, str], site: Path | None = None) -> tuple[Path, ...]:
    """The directories whose owner and group the user or the site trusts.

    Raises:
        UsageError: for a file that cannot be read or has what it cannot have.
    """
    search = _Search(environ.get("HOME", ""))
    documents = (search.user(environ.get("XDG_CONFIG_HOME", "")), search.file(Origin.SITE, (site or SITE) / _FILE))
    return tuple(path for document in documents if document for path in document.trusted)


@dataclass
class _Search:
    """Looks for files, and remembers where it has looked."""

    home: str
    looked: list[SearchedPlace] = field(default_factory=list)
    trusted: tuple[Path, ...] = ()

    def project(self, directory: Path) -> _Document | None:
        """The nearest settings of a project."""
        for place in upwards(directory, self.home):
            own = self.file(Origin.PROJECT, place / _PROJECT_FILE)
            shared = self._shared(place / _SHARED_FILE)
            if own is not None and shared is not None:
                raise UsageError(
                    f"{place / _PROJECT_FILE} and [{_SHARED_TABLE}] of {place / _SHARED_FILE} both are the project's "
                    "settings: keep one of them"
                )
            if own is not None or shared is not None:
                return own or shared
        return None

    def user(self, config_home: str) -> _Document | None:
        """The user's settings."""
        folder = user_directory(self.home, config_home)
        return self.file(Origin.USER, folder / _FILE) if folder else None

    def profile(self, name: str, directory: Path, documents: list[_Document]) -> list[SettingsLayer] | str:
        """What the named profile says, the strongest first; or what is wrong with its name."""
        if not name:
            return []
        if os.sep in name or name.endswith(".toml"):
            return self._named(directory / name)
        layers = [document.profiles[name] for document in documents if name in document.profiles]
        shipped = self.file(Origin.PROFILE, SHIPPED / f"{name}.toml", profiles=False, trusted=ALL)
        if shipped is not None:
            layers.append(shipped.own)
        if layers:
            return layers
        known = sorted({name for document in documents for name in document.profiles} | set(shipped_profiles()))
        near = difflib.get_close_matches(name, known, n=1)
        return f"there is no profile '{name}'" + (f"; did you mean '{near[0]}'?" if near else f", only {_and(known)}")

    def file(
        self, origin: Origin, path: Path, *, profiles: bool = True, trusted: Sequence[Path] = ()
    ) -> _Document | None:
        """The settings that are a whole file."""
        read = _read(path)
        if read is None:
            self.looked.append(SearchedPlace(origin, path, "not there"))
            return None
        data, status = read
        why = distrust(path, status, (*trusted, *self.trusted), system=origin is Origin.SITE)
        self.looked.append(SearchedPlace(origin, path, "ignored" if why else "found", why))
        return None if why else _document(origin, Table(str(path), "", _parse(path, data)), profiles=profiles)

    def _named(self, path: Path) -> list[SettingsLayer] | str:
        """A profile that is named by its path: then the user trusts its owner and its group."""
        found = self.file(Origin.PROFILE, path, profiles=False, trusted=ALL)
        if found:
            return [found.own]
        return self.looked[-1].why or f"there is no file {path}"

    def _shared(self, path: Path) -> _Document | None:
        """The settings in a file that has those of other programs as well."""
        read = _read(path)
        tool, why = None, ""
        # Most of these files are not about hpc-launch, and then it does not matter whether they are right.
        if read is not None and _OWN_KEY.encode() in read[0]:
            why = distrust(path, read[1], self.trusted)
            tool = _tool_table(path, read[0], tolerant=bool(why))
        there = "not there" if read is None else f"no [{_SHARED_TABLE}] in it" if tool is None else "found"
        why = why if tool is not None else ""
        self.looked.append(SearchedPlace(Origin.PROJECT, path, "ignored" if why else there, why))
        return None if tool is None or why else _document(Origin.PROJECT, tool.below(_OWN_KEY))


def user_directory(home: str, config_home: str) -> Path | None:
    """Where the user's own files are; None where there is no home.

    As the XDG base directory specification has it, a relative directory does not count.
    """
    folder = Path(config_home)
    if not folder.is_absolute():
        folder = Path(home, ".config")
    return folder / "hpc-launch" if folder.is_absolute() else None


def shipped_profiles() -> tuple[str, ...]:
    """The names of the profiles that come with hpc-launch."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def _document(origin: Origin, table: Table, *, profiles: bool = True) -> _Document:
    """The settings in a table of a file, and below it."""
    trusted = _trusted(origin, table.file, table.content[_TRUSTED]) if _TRUSTED in table.content else ()
    named = table.below(_PROFILES) if profiles else Table(table.file, "", {})
    return _Document(
        layer_of(origin, table, {_TRUSTED, _PROFILES} if profiles else {_TRUSTED}),
        {name: layer_of(Origin.PROFILE, named.below(name)) for name in named.content},
        trusted,
    )


def _trusted(origin: Origin, path: str, given: Any) -> tuple[Path, ...]:
    """The directories that a file trusts; a project cannot say that of itself."""
    if origin not in (Origin.USER, Origin.SITE):
        raise UsageError(f"{path}: {_TRUSTED} counts in the settings of the user and of the site only: take it out")
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise UsageError(f'{path}: {_TRUSTED} is not a list of directories: write {_TRUSTED} = ["/project/x"]')
    found = tuple(expand_home(item) for item in given)
    for folder in found:
        if not folder.is_absolute():
            raise UsageError(f"{path}: {_TRUSTED}: '{folder}' is not a whole path: begin it with / or ~")
    return found


def _tool_table(path: Path, data: bytes, *, tolerant: bool) -> Table | None:
    """The table `tool` of a file; None where it has nothing of ours, or, `tolerant`, cannot be read."""
    try:
        tool = _parse(path, data).get("tool")
    except UsageError:
        if tolerant:
            return None
        raise
    return Table(str(path), "tool.", tool) if isinstance(tool, dict) and _OWN_KEY in tool else None


def upwards(directory: Path, home: str) -> Iterator[Path]:
    """The directory and those above it in which a project may begin.

    Not above the user's home, nor in another file system, where a look may be slow or mount something; nor where
    everybody can put a file, as in /tmp.
    """
    here, top = _status(directory), _status(Path(home)) if home else None
    yield directory
    for parent in directory.parents:
        above = _status(parent)
        if here is None or above is None or (top is not None and os.path.samestat(here, top)):
            return
        if above.st_dev != here.st_dev or above.st_mode & stat.S_IWOTH:
            return
        yield parent
        here = above


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _read(path: Path) -> tuple[bytes, os.stat_result] | None:
    """The content of a file, and what the file system says of it; None where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # In a directory that is closed to this user nothing was put for them.
        if isinstance(error, PermissionError) and _status(path) is None:
            return None
        raise UsageError(f"cannot read {path}: {reason(error)}") from error


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - needed where there is a file only
    else:
        import tomli as tomllib  # noqa: PLC0415 - as above

    try:
        content: dict[str, Any] = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not TOML: what is at line {line} is not text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    return content


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
