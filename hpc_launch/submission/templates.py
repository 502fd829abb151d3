"""Job templates: where they are, and which one a name means."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_launch.errors import HpcLaunchError, LogDirError, UsageError, reason
from hpc_launch.file_ownership import distrust
from hpc_launch.home import expand_home
from hpc_launch.settings import settings_files

SUFFIX = ".sbatch"

# The directory of a project's own templates, in the project's directory or one above.
PROJECT = Path(".hpc-launch/templates")

# The origin of those that come with hpc-launch.
_SHIPPED = "hpc-launch"

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class JobTemplate:
    """A job script to start from.

    Attributes:
        name: by which it is asked for: the file's, without the suffix.
        path: its file.
        origin: whose it is: the project's, the user's, the site's, or the one of hpc-launch; or a file that was named.
        ignored: a line for each template of that name that would come first, and does not count.
    """

    name: str
    path: Path
    origin: str
    ignored: tuple[str, ...] = ()

    @property
    def shipped(self) -> bool:
        """Whether it comes with hpc-launch."""
        return self.origin == _SHIPPED

    def text(self) -> str:
        """What is in the file.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {self.path}: {reason(error)}") from error


def summary(text: str) -> str:
    """The first line of a template that says something: what it is for. Pure."""
    for line in text.splitlines()[1:]:
        if not line.startswith("#") or line.startswith("#SBATCH"):
            break
        if words := line.lstrip("#").strip():
            return words
    return ""


def shipped(package: Path = _PACKAGE) -> Path:
    """The directory of the templates that come with hpc-launch.

    In an installation it is in the package. In a checkout, which an editable installation uses, it is beside it.

    Raises:
        HpcLaunchError: there is none.
    """
    places = (package / "sbatch_templates", package.parent / "sbatch_templates")
    for place in places:
        if place.is_dir():
            return place
    raise HpcLaunchError(f"the templates of hpc-launch are not in {places[0]}: install hpc-launch again")


def template_directories(
    environ: Mapping[str, str], directory: Path, site: Path = settings_files.SITE
) -> Iterator[tuple[str, Path]]:
    """The directories in which templates may be, and whose these are. What comes first wins.

    The project's is the nearest `.hpc-launch/templates`, looked for where its settings would be
    (`settings.settings_files`).
    """
    home = environ.get("HOME", "")
    for place in settings_files.upwards(directory, home):
        if (place / PROJECT).is_dir():
            yield "project", place / PROJECT
            break
    own = settings_files.user_directory(home, environ.get("XDG_CONFIG_HOME", ""))
    if own is not None:
        yield "user", own / "templates"
    yield "site", site / "templates"
    yield _SHIPPED, shipped()


@dataclass(frozen=True)
class TemplateSearch:
    """What there is.

    Attributes:
        templates: those that count, by name.
        ignored: a line for each that another user can change and that does not count, by name.
    """

    templates: Mapping[str, JobTemplate]
    ignored: Mapping[str, tuple[str, ...]]


def find_templates(
    environ: Mapping[str, str], directory: Path, site: Path = settings_files.SITE
) -> dict[str, JobTemplate]:
    """All templates that count, by name: see `search_templates`."""
    return dict(search_templates(environ, directory, site).templates)


def search_templates(environ: Mapping[str, str], directory: Path, site: Path = settings_files.SITE) -> TemplateSearch:
    """Look for templates.

    Args:
        environ: the environment, which says where the user's are.
        directory: the working directory.
        site: the directory of the site's files, if not the usual one.
    """
    found: dict[str, JobTemplate] = {}
    ignored: dict[str, tuple[str, ...]] = {}
    for origin, place in template_directories(environ, directory, site):
        for path in sorted(_files(place)):
            why = "" if origin == _SHIPPED else _distrust(path, origin, environ, site)
            if why:
                ignored[path.stem] = (*ignored.get(path.stem, ()), f"{path} is not used: {why}")
            elif path.stem not in found:
                found[path.stem] = JobTemplate(path.stem, path, origin, ignored.get(path.stem, ()))
    return TemplateSearch(dict(sorted(found.items())), ignored)


def _distrust(path: Path, origin: str, environ: Mapping[str, str], site: Path) -> str:
    """Say why a template does not count. The settings are read only where that matters."""
    try:
        status, system = path.stat(), origin == "site"
        if not distrust(path, status, system=system):
            return ""
        return distrust(path, status, settings_files.trusted_directories(environ, site), system=system)
    except OSError as error:
        return f"it cannot be looked at: {reason(error)}"


def get_template(
    word: str, environ: Mapping[str, str], directory: Path, site: Path = settings_files.SITE
) -> JobTemplate:
    """The template that a name or a path means. A name may be written with dashes, and with its suffix.

    Args:
        word: a name; or a path, which has a slash in it.
        environ: the environment.
        directory: the working directory.
        site: the directory of the site's files, if not the usual one.

    Raises:
        UsageError: there is none.
    """
    if os.sep in word:
        path = directory / expand_home(word)
        if not path.is_file():
            raise UsageError(f"there is no template {path}", option="--template")
        # Whoever names a file trusts its owner.
        why = distrust(path, path.stat(), settings_files.ALL)
        if why:
            raise UsageError(f"template {path} is not used: {why}", option="--template")
        return JobTemplate(path.stem, path, "file")
    looked = search_templates(environ, directory, site)
    found = looked.templates
    name = word.removesuffix(SUFFIX)
    for spelling in (name, name.replace("-", "_")):
        if spelling in found:
            return found[spelling]
        if spelling in looked.ignored:
            raise UsageError(f"template {looked.ignored[spelling][0]}", option="--template")
    near = difflib.get_close_matches(name.replace("-", "_"), found, n=1)
    mend = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(found)}"
    if (directory / word).is_file():
        mend = f"for the file, write ./{word}"
    raise UsageError(f"there is no template '{name}'; {mend}", option="--template")


def copy_template(template: JobTemplate, destination: Path, *, force: bool) -> Path:
    """Copy a template, to be edited.

    Args:
        template: which.
        destination: a file that is not there yet, or a directory, in which the copy has the template's name.
        force: whether a file that is there is replaced.

    Returns:
        The copy. It has the permissions of the original, and may be written by its owner.

    Raises:
        UsageError: there is such a file.
        LogDirError: it cannot be written.
    """
    text = template.text()
    target = destination / template.path.name if destination.is_dir() else destination
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
        target.chmod(stat.S_IMODE(template.path.stat().st_mode) | stat.S_IWUSR)
    except FileExistsError:
        raise UsageError(f"{target} is there already: name another file, or replace it with --force") from None
    except OSError as error:
        raise LogDirError(f"cannot write {target}: {reason(error)}") from error
    return target


def _files(place: Path) -> Iterator[Path]:
    try:
        yield from (path for path in place.iterdir() if path.suffix == SUFFIX and path.is_file())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
