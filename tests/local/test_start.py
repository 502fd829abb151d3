"""Warm and exec starts through the launcher: what workers are, when which is chosen, and what is said about it."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.local.launching import FOREVER, HPC_LAUNCH, LAUNCH_MODULE, alive, launch, probe, running, write
from tests.support import mentions, wait_for

STARTS = ("warm", "exec")


@pytest.fixture(autouse=True)
def usual_start(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - it comes first
    """These tests say themselves how workers start, however the others do."""
    monkeypatch.delenv("HPC_LAUNCH_START", raising=False)


def notes(err: str) -> list[str]:
    return [line for line in err.splitlines() if "started by exec" in line]


@pytest.mark.parametrize("start", STARTS)
def test_workers_are_the_same_by_either_start(tmp_path: Path, start: str) -> None:
    """Arguments, command line, directory and modules: only what is imported beforehand tells them apart."""
    body = """
        loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "hpc_launch", "click", "psutil"})
        print(loaded, __name__, __file__, sys.path[0], sys.flags.no_site, flush=True)
    """
    words = ["--start", start, "--nproc-per-node", "2", probe(tmp_path, body), "--lr", "a b"]
    done = launch(tmp_path, *words, program=LAUNCH_MODULE)
    assert done.status == 0, done.err
    assert [list(record.argv) for record in done.records] == [
        ["train.py", f"--local-rank={rank}", "--lr", "a b"] for rank in range(2)
    ]
    assert {record.cwd for record in done.records} == {str(tmp_path)}
    for rank, record in enumerate(done.records):
        line = " ".join(record.command).strip()
        assert line == f"{sys.executable} -u train.py --local-rank={rank} --lr a b"
    loaded = "['torch']" if start == "warm" else "[]"
    expected = f"{loaded} __main__ {tmp_path / 'train.py'} {tmp_path} 0"
    assert sorted(done.out.splitlines()) == [f"[{host()}:{rank}] {expected}" for rank in range(2)]
    assert notes(done.err) == []


def host() -> str:
    return os.uname().nodename.partition(".")[0]


def test_torch_is_imported_once_and_forked_in_every_attempt(tmp_path: Path) -> None:
    """All workers of all attempts come from one factory: torch is loaded already, and at the same place."""
    body = """
        import torch
        print("at", id(torch), len(os.listdir("/proc/self/task")), flush=True)
        sys.exit(int(os.environ["TORCHELASTIC_RESTART_COUNT"] != "2"))
    """
    done = launch(tmp_path, "--max-restarts", "2", "--nproc-per-node", "2", "--start", "warm", probe(tmp_path, body))
    assert done.status == 0, done.err
    lines = [line.partition("] ")[2] for line in done.out.splitlines()]
    assert len(set(lines)) == 1
    assert len(lines) == len(done.records) == 6


@pytest.mark.parametrize(
    ("words", "env", "reason"),
    [
        (["--no-python", sys.executable, "train.py"], {}, "--no-python"),
        (["--run-path", "--start-method", "spawn", "train.py"], {}, "--start-method spawn"),
        (["sets.py"], {}, "sets.py:3 OMP_NUM_THREADS"),
        (["--exec-for", "sqlite3", "imports.py"], {}, "sqlite3 --exec-for"),
        (["shadow/train.py"], {}, "shadow queue"),
        (["--preload", "gone", "train.py"], {"PYTHONPATH": "more"}, "gone --preload"),
        (["--preload", "colorsys", "shade/train.py"], {}, "shade colorsys"),
    ],
)
def test_what_cannot_be_warm_is_started_by_exec(
    tmp_path: Path, words: list[str], env: dict[str, str], reason: str
) -> None:
    """auto falls back, says why in one line, and the script runs all the same."""
    probe(tmp_path)
    probe(tmp_path, name="shadow/train.py")
    write(tmp_path / "shadow/queue.py", "")
    probe(tmp_path, "import sqlite3", name="imports.py")
    early = "import os\nimport sys\nos.environ['OMP_NUM_THREADS'] = '3'\n"
    (tmp_path / "sets.py").write_text(early + (tmp_path / "train.py").read_text() + "import torch\n")
    probe(tmp_path, name="shade/train.py")
    write(tmp_path / "shade/colorsys.py", "")
    write(tmp_path / "more/gone.py", "import os\nos._exit(7)")
    done = launch(tmp_path, *words, env=env)
    assert (done.status, len(done.records)) == (0, 1), done.err
    [line] = notes(done.err)
    assert mentions(line, reason), line
    assert "sets.py" not in words or done.records[0]["OMP_NUM_THREADS"] == "3"


THREAD = "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preload", "no_such_module", "train.py"], "cannot import 'no_such_module' (--preload) with "),
        (["--preload", "broken", "train.py"], "broken' (--preload) with"),
        (
            ["--start", "warm", "--start-method", "spawn", "train.py"],
            "--start warm: --start-method spawn",
        ),
    ],
)
def test_what_was_asked_for_and_cannot_be(tmp_path: Path, words: list[str], message: str) -> None:
    """It is an error, said in a line."""
    probe(tmp_path)
    write(tmp_path / "more/broken.py", "1 / 0")
    done = launch(tmp_path, *words, env={"PYTHONPATH": "more"})
    assert (done.status, done.records) == (2, []), done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("hpc-launch: ")]
    assert message in line
    assert "Traceback" not in done.err


@pytest.mark.parametrize("start", ["auto", "warm"])
def test_modules_that_cannot_be_preloaded(tmp_path: Path, start: str) -> None:
    """One that starts threads or initialises CUDA is named, and imported by each worker; torch and the others stay."""
    write(tmp_path / "more/own.py", "import os\npid = os.getpid()")
    write(tmp_path / "more/threads.py", "import threading, time\n" + THREAD)
    write(tmp_path / "more/device.py", "import torch\ntorch.cuda.is_initialized = lambda: True")
    write(tmp_path / "more/other.py", "import os\npid = os.getpid()")
    body = """
        print(*sorted({"own", "torch", "threads", "device", "other"} & sys.modules.keys()), flush=True)
        import own, other, threads, threading
        print(own.pid == other.pid != os.getpid(), threading.active_count(), flush=True)
    """
    words = ["--start", start, "--preload", "own,threads,device,other", probe(tmp_path, body)]

    done = launch(tmp_path, *words, env={"PYTHONPATH": "more"})

    assert done.status == 0, done.err
    assert [line.partition("] ")[2] for line in done.out.splitlines()] == ["other own torch", "True 2"]
    first, second = (line for line in done.err.splitlines() if "note: " in line)
    assert mentions(first, "threads --preload")
    assert mentions(second, "device --preload CUDA")


def test_a_torch_that_is_too_old(tmp_path: Path) -> None:
    """One line says which is there and which is needed; nothing is started."""
    write(tmp_path / "more/torch-2.3.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.3.1\n")
    done = launch(tmp_path, probe(tmp_path), env={"PYTHONPATH": "more"})
    [line] = done.err.splitlines()

    assert (done.status, done.records) == (2, []), done.err
    assert mentions(line, "2.3.1 pip torch>=2.4"), line


def test_what_a_preloaded_module_prints_is_printed_once(tmp_path: Path) -> None:
    """By the process that imports it, and not again by each worker that is forked from there."""
    write(tmp_path / "more/talks.py", "print('plugins are registered')")
    words = ["--preload", "talks", "--nproc-per-node", "3", probe(tmp_path)]

    done = launch(tmp_path, *words, env={"PYTHONPATH": "more", "PYTHONUNBUFFERED": None})

    written = [path.read_text() for path in tmp_path.glob("logs/local-*/attempt_0/*/rank_*.out")]
    assert (done.status, done.out, written) == (0, "plugins are registered\n", [""] * 3), done.err


def test_modules_that_are_preloaded(tmp_path: Path) -> None:
    """--preload brings modules in with torch, also the user's own, and those that the launcher has too."""
    write(tmp_path / "more/own.py", "import os\npid = os.getpid()")
    body = """
        print("own" in sys.modules, "click" in sys.modules, "psutil" in sys.modules, flush=True)
        import own
        print(own.pid == os.getpid(), flush=True)
    """
    done = launch(tmp_path, "--preload", "own,click", probe(tmp_path, body), env={"PYTHONPATH": "more"})
    assert done.status == 0, done.err
    assert [line.partition("] ")[2] for line in done.out.splitlines()] == ["True True False", "False"]


@pytest.mark.parametrize("start", STARTS)
def test_a_worker_of_the_launch_sees_nothing_of_the_agent(tmp_path: Path, start: str) -> None:
    """No descriptor of the agent's, no handler, no thread; the factory is its parent, and the agent the factory's.

    A forked worker has what `hpc-launch stacks` asks it by (`node.reserved_signals`): a file, and two handlers of which
    Python knows one.
    """
    body = """
        import signal, threading
        names = [n for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")]
        kept = [n for n in names if not os.readlink(f"/proc/self/fd/{n}").startswith("/memfd:hpc-launch ")]
        own = {signal.SIGINT, signal.SIGRTMIN + 10}
        handlers = [s for s in signal.valid_signals() if callable(signal.getsignal(s)) and s not in own]
        above = Path("/proc", str(os.getppid()), "stat").read_text().rpartition(")")[2].split()[1]
        print(sorted(kept), handlers, threading.active_count(), above, os.getppid(), flush=True)
    """
    with running(tmp_path, "--start", start, probe(tmp_path, body)) as launcher:
        agent = launcher.process.pid
        done = launcher.finish()
    assert done.status == 0, done.err
    seen, _, parent = done.out.partition("] ")[2].strip().rpartition(" ")
    assert seen == f"['0', '1', '2'] [] 1 {agent}"
    assert int(parent) not in (agent, os.getpid())


def test_a_factory_that_is_gone(tmp_path: Path) -> None:
    """When somebody kills the factory, its workers die; the next attempt is started by exec, and one line says so."""
    body = f"if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    {FOREVER.replace(chr(10), chr(10) + '    ')}"
    with running(tmp_path, "--max-restarts", "1", probe(tmp_path, body)) as launcher:
        launcher.await_records(1)
        [factory] = [
            child for child in psutil.Process(launcher.process.pid).children() if "factory" in " ".join(child.cmdline())
        ]
        factory.kill()
        done = launcher.finish()
    assert (done.status, len(done.records)) == (0, 2), done.err
    assert "is gone" in done.err
    assert "started by exec" in done.err


def test_nothing_is_left_of_an_agent_that_is_killed(tmp_path: Path) -> None:
    """Its workers and the factory end with it, outside of Slurm too."""
    body = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FOREVER}"
    with running(tmp_path, "--nproc-per-node", "2", probe(tmp_path, body)) as launcher:
        launcher.await_records(2)
        factories = [
            child.pid
            for child in psutil.Process(launcher.process.pid).children()
            if "factory" in " ".join(child.cmdline())
        ]
        workers = [record.pid for record in launcher.records()]
        launcher.process.kill()
        launcher.process.wait()
        wait_for(lambda: not any(map(alive, [*factories, *workers])), 60, "something is still there")
    assert (len(factories), len(workers)) == (1, 2)


def test_what_is_set_for_the_import_stays_there(tmp_path: Path) -> None:
    """Workers have the environment that is theirs, and as many threads of OpenMP and OpenBLAS as a new process."""
    body = """
        import threadpoolctl, torch
        pools = sorted((pool["internal_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info())
        print([name for name in os.environ if "OPENBLAS" in name], pools, torch.get_num_threads(), flush=True)
    """
    found = {}
    for start in STARTS:
        done = launch(tmp_path, "--start", start, "--omp-num-threads", "2", probe(tmp_path, body))
        assert done.status == 0, done.err
        found[start] = done.out
    assert found["warm"] == found["exec"]
    assert " 2\n" in found["warm"]


@pytest.mark.parametrize("start", STARTS)
def test_variables_for_the_workers(tmp_path: Path, start: str) -> None:
    """--default-env is there when torch is imported and when the script runs, unless the environment says otherwise."""
    body = """
        import torch
        print(os.environ["A"], os.environ["B"], torch.get_num_threads(), flush=True)
    """
    given = ["--start", start, "--default-env", "A=1,B=x,,y z,OMP_NUM_THREADS=1"]
    done = launch(tmp_path, *given, probe(tmp_path, body), env={"A": "mine"})

    assert (done.status, done.out.splitlines()[-1].endswith("mine x,y z 1")) == (0, True), done.out + done.err


def test_the_first_line_of_the_program_is_no_matter(tmp_path: Path) -> None:
    """The console script and `python -m hpc_launch` start the same workers."""
    script = Path(sys.executable).parent / "hpc-launch"
    body = "print(sys.argv, sys.path[0], flush=True)"
    outs = [
        launch(tmp_path, probe(tmp_path, body), "x", program=program).out for program in (HPC_LAUNCH, (str(script),))
    ]
    assert outs[0] == outs[1]
    assert "['train.py', 'x']" in outs[0]
