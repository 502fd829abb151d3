"""Fuzz one target with atheris, which steers by the code that is reached: `python tests/fuzz/fuzz.py TARGET SECONDS`.

It ends with status 0 if nothing was found. What was found is written to the working directory; `fuzz.py TARGET 0 FILE`
runs it again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["hpc_launch.rendezvous", "json"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run the fuzzer."""
    name, seconds, *files = sys.argv[1:]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz") as corpus:
        for number, seed in enumerate(target.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=1024", "-verbosity=1"]
        atheris.Setup([sys.argv[0], *(files or [*limits, corpus])], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
