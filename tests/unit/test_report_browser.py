"""A report in a real browser: everything has its place, and nothing is asked of the network."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.inspection import job_report
from tests import browser, histories
from tests.histories import Losses

# What a person would see: words outside of the picture or upon each other, bars that are nothing, a page that is too
# wide, colours that cannot be told apart from their ground.
LOOK = """(page) => {
  const problems = [];
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth) problems.push(`${root.scrollWidth} wide in ${root.clientWidth}`);
  for (const picture of page.querySelectorAll("figure .scroll svg")) {
    const view = picture.viewBox.baseVal;
    const words = [...picture.querySelectorAll("text")].map(
      (text) => ({ box: text.getBBox(), said: text.textContent, beside: !text.classList.contains("middle") }));
    for (const { box, said, beside } of words) {
      if (box.x < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1)
        problems.push(`"${said}" is outside`);
      if (beside && box.x < 190 && box.x + box.width > 206) problems.push(`"${said}" lies on the bars`);
    }
    const beyond = (one, other) => one.x + one.width <= other.x || one.y + one.height / 2 <= other.y;
    words.forEach((one, at) => {
      for (const other of words.slice(at + 1))
        if (!beyond(one.box, other.box) && !beyond(other.box, one.box))
          problems.push(`"${one.said}" lies on "${other.said}"`);
    });
    const bars = ["cause", "finished", "stopped", "followed", "running"].map((kind) => `path.${kind}`).join();
    for (const bar of picture.querySelectorAll(bars)) {
      const box = bar.getBBox();
      if (box.width < 0.9 || box.height < 3) problems.push(`a bar of ${box.width} by ${box.height}`);
      if (box.x < 205 || box.x + box.width > view.width) problems.push(`a bar from ${box.x} to ${box.x + box.width}`);
    }
  }
  const count = (what) => page.querySelectorAll(what).length;
  return {
    problems, title: page.title, bars: count("figure .scroll path.finished, figure .scroll path.cause"),
    titles: count("figure .scroll title"), scripts: count("script"),
    font: getComputedStyle(page.body).fontSize,
  };
}"""


JOBS: dict[str, dict[str, Any]] = {
    "small": {"nodes": 2, "per_node": 4, "attempts": 1},
    "restarts": {"nodes": 4, "per_node": 8, "attempts": 6, "requeues": [1, 3], "ending": "failed"},
    "many attempts": {"nodes": 3, "per_node": 2, "attempts": 30, "requeues": range(0, 30, 3), "ending": "stopped"},
    "running": {"nodes": 2, "per_node": 2, "attempts": 2, "ending": "", "length": 40_000.0, "requeues": [0]},
    "1,024 ranks": {"nodes": 128, "per_node": 8, "attempts": 3, "requeues": [1], "ending": "failed"},
}


@pytest.mark.usefixtures("require_browser")
def test_everything_has_its_place(tmp_path: Path) -> None:
    """Words and bars are where they belong, in a wide window and in a narrow one."""
    pages = {}
    for name, facts in JOBS.items():
        job = histories.write(tmp_path / name, fails={1: 2, 2: 2}, **facts)
        pages[name] = job_report.report_on_job(job).html(tmp_path)
    for ending in ("done", ""):
        pages[f"losses {ending}"] = job_report.report_on_job(
            Losses(tmp_path / f"losses {ending}", ending).write()
        ).html(tmp_path)
    found = browser.measure(pages, LOOK, [1300, 700])

    assert len(found) == 2 * len(pages)
    assert {name: page["problems"] for name, page in found.items() if page.get("problems") != []} == {}
    assert all(page["bars"] and page["titles"] and not page["scripts"] for page in found.values())
    assert {page["font"] for page in found.values()} == {"15px"}


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """Return the address of a server, and the list of what it is asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


@pytest.mark.usefixtures("require_browser")
def test_nothing_is_asked_of_the_network(tmp_path: Path, asked: tuple[str, list[str]]) -> None:
    """The job's own words would have it so, but are words; were they markup, they could not."""
    address, paths = asked
    message = f"</pre><img src='{address}/image'><script src='{address}/script'></script><style>@import '{address}/css'"
    job = histories.write(tmp_path / "4711.0", ending="failed", exception=("ValueError", message))
    page = job_report.report_on_job(job).html(tmp_path)
    file = tmp_path / "page.html"
    file.write_text(page.replace("</main>", f"{message}</style></main>"))
    shown = browser.dom(file)

    assert f'<img src="{address}/image">' in shown
    assert f"&lt;img src='{address}/image'&gt;" in shown
    assert paths == []
