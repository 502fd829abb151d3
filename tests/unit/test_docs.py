"""The documentation: its examples run, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_launch.settings import resolve
from hpc_launch.settings.settings_files import load_settings_files
from hpc_launch.submission.submit_resolution import submit_overview

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += sorted(ROOT.glob("examples/**/*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)]*))?\)")
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _examples() -> list[tuple[str, str]]:
    """Return the commands of the `console` blocks that hpc-launch answers by itself, with what the pages show."""
    found = []
    for page in PAGES:
        for block in CONSOLE.findall(page.read_text()):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                if command.startswith("hpc-launch hosts"):
                    found.append((command, output))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Every relative link leads to a file, and its fragment to a heading there."""
    missing = []
    for target, fragment in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file = (page.parent / target) if target else page
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if file.suffix == ".md" else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        if not file.exists() or (fragment and fragment not in slugs):
            missing.append(f"{target}#{fragment}")

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_that_are_named_are_there(page: Path) -> None:
    """A page names files of the package from its top, and those of the tests from the project's."""
    named = {Path(name) for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)(?=[`: ])", page.read_text())}
    missing = [name for name in named if not ((ROOT / "hpc_launch" / name).exists() or (ROOT / name).exists())]

    assert sorted(missing) == []


def test_there_are_examples() -> None:
    """The pages have examples that can be run here."""
    assert len(_examples()) >= 3


@pytest.mark.parametrize(("command", "output"), _examples(), ids=[command for command, _ in _examples()])
def test_examples_print_what_the_pages_show(command: str, output: str) -> None:
    """An example on a page prints what the page says."""
    words = shlex.split(command)
    done = subprocess.run([sys.executable, "-m", "hpc_launch", *words[1:]], capture_output=True, text=True, check=True)

    assert output == done.stdout


def test_python_examples_compile() -> None:
    """The Python of the pages is Python."""
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            compile(block, str(page), "exec")


def test_toml_examples_are_settings_files(tmp_path: Path) -> None:
    """The TOML of the pages can be kept as a settings file, with all of its profiles."""
    examples = [
        block
        for page in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert examples

    for example in examples:
        # A policy and trusted directories are not a project's to set; everything else can be.
        site = "[policy]" in example or "trusted" in example
        file = tmp_path / ("config.toml" if site else "hpc-launch.toml")
        file.write_text(example)
        for name in ("", *re.findall(r"^\[profiles\.([^.]*)\]$", example, re.MULTILINE)):
            layers = load_settings_files({}, tmp_path, name, tmp_path).layers
            assert resolve({}, {}, layers).origins
            assert ("[submit]" in example) <= bool(submit_overview({}, layers))
        file.unlink()


def test_shell_examples_are_shell() -> None:
    """The shell of the pages is bash."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)
