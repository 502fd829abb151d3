"""Look at pages in a real browser: chromium without a window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The first of these that is there. Debian's headless shell is the smallest of them.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

_FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests are root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=20000",
)

# Shows pages in a frame, one after another, opens all that can be opened, measures it by a function, for windows of
# different widths, and is the result itself in the end.
_FRAME = """<!DOCTYPE html><meta charset="utf-8"><body><iframe style="height: 3000px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe"), pages = PAGES, widths = WIDTHS, look = LOOK, found = {};
function show(names) {
  if (names.length == 0) {
    document.body.textContent = "MEASURED" + JSON.stringify(found) + "MEASURED";
    return;
  }
  frame.onload = () => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach((one) => { one.open = true; });
    for (const width of widths) {
      frame.style.width = `${width}px`;
      try {
        found[`${names[0]}, ${width} wide`] = look(page);
      } catch (error) {
        found[`${names[0]}, ${width} wide`] = { error: String(error) };
      }
    }
    show(names.slice(1));
  };
  frame.srcdoc = pages[names[0]];
}
show(Object.keys(pages));
</script>
"""


def program() -> str | None:
    """The browser, if there is one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def measure(pages: Mapping[str, str], function: str, widths: Sequence[int]) -> dict[str, Any]:
    """Show pages, and have a function in JavaScript look at their documents.

    Args:
        pages: them, by name.
        function: takes a document, and returns what JSON can hold.
        widths: of the windows.

    Returns:
        What it has returned, by `NAME, WIDTH wide`.
    """
    text = _FRAME.replace("WIDTHS", json.dumps([*widths])).replace("LOOK", function)
    text = text.replace("PAGES", json.dumps(dict(pages)).replace("<", "\\u003c"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frame.html"
        file.write_text(text)
        shown = dom(file)
    found = re.search(r"MEASURED(.*)MEASURED", shown, re.DOTALL)
    assert found, shown[:2000]
    results: dict[str, Any] = json.loads(html.unescape(found[1]))
    return results


def dom(file: Path) -> str:
    """Show a file; return its document as the browser has it then."""
    browser = program()
    assert browser
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", "--dump-dom", file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout
