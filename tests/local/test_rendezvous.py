"""Rendezvous backends other than hpc-launch's own, with their endpoints, names and options."""

import json
import os
from pathlib import Path

from tests.local.launching import free_port, launch, probe, running, write

# A backend as another package would publish it: it writes down what it was asked, and answers as `--rdzv-conf` says.
BACKEND = """
    import json
    from pathlib import Path
    from torch.distributed import HashStore
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
    from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

    class Handler(RendezvousHandler):
        use_agent_store = False

        def __init__(self, parameters):
            self.parameters = parameters

        def get_backend(self):
            return "meeting"

        def next_rendezvous(self):
            where = RendezvousStoreInfo(self.parameters.config["where"], int(self.parameters.config["port"]))
            return RendezvousInfo(HashStore(), 0, 1, where)

        def is_closed(self):
            return False

        def set_closed(self):
            pass

        def num_nodes_waiting(self):
            return 0

        def get_run_id(self):
            return self.parameters.run_id

        def shutdown(self):
            return True

    def create(parameters):
        names = ("endpoint", "run_id", "min_nodes", "max_nodes", "local_addr")
        asked = {name: getattr(parameters, name) for name in names}
        Path("asked.json").write_text(json.dumps(asked))
        return Handler(parameters)

    def entry_point():
        return create
"""


def test_a_registered_backend_gets_every_option(tmp_path: Path) -> None:
    """A backend that another package registers with torch is told endpoint, id, options, nodes and address."""
    site = tmp_path / "site"
    write(site / "meeting.py", BACKEND)
    write(site / "meeting-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: meeting\nVersion: 1.0\n")
    write(site / "meeting-1.0.dist-info" / "entry_points.txt", "[torchrun.handlers]\nmeeting = meeting:entry_point\n")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    words = ["--rdzv-backend", "meeting", "--rdzv-endpoint", "room:17", "--rdzv-id", "tuesday"]
    words += ["--rdzv-conf", "where=10.9.8.7, port=1234", "--local-addr", "10.9.8.6", "--nnodes", "1:3"]
    done = launch(
        tmp_path, *words, "--nproc-per-node", "2", probe(tmp_path), env={"PYTHONPATH": os.pathsep.join(paths)}
    )
    assert done.status == 0, done.err
    asked = json.loads((tmp_path / "asked.json").read_text())
    expected = {"endpoint": "room:17", "run_id": "tuesday", "min_nodes": 1, "max_nodes": 3, "local_addr": "10.9.8.6"}
    assert expected == asked
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "GROUP_WORLD_SIZE")
    assert done.seen(*names) == [("10.9.8.7", "1234", "tuesday", "False", "1")] * 2


def test_static_on_one_node(tmp_path: Path) -> None:
    """The static backend runs on one node, with the given port as MASTER_PORT."""
    port = str(free_port())
    done = launch(tmp_path, "--rdzv-backend", "static", "--master-port", port, probe(tmp_path))
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
    assert (0, [("0", "127.0.0.1", port, "True")]) == (done.status, done.seen(*names)), done.err


def test_c10d_on_one_node_restarts(tmp_path: Path) -> None:
    """Under torch's c10d backend, too, workers learn the number of their attempt, and the status is theirs."""
    words = ["--rdzv-backend", "c10d", "--max-restarts", "1", "--rdzv-conf", "read_timeout=30"]
    done = launch(tmp_path, *words, probe(tmp_path, "raise SystemExit(43)"))
    names = ("RANK", "TORCHELASTIC_RESTART_COUNT")
    assert (done.status, done.seen(*names)) == (43, [("0", "0"), ("0", "1")]), done.err


def test_two_c10d_runs_on_one_node_do_not_meet(tmp_path: Path) -> None:
    """Both have the id 'none'; the second one begins and ends while the first one's worker waits for it."""
    words = ["--rdzv-backend", "c10d", "--rdzv-conf", "read_timeout=30"]
    waits = "while not Path('go').exists(): time.sleep(0.01)"
    with running(tmp_path, *words, probe(tmp_path, f"import time\nfrom pathlib import Path\n{waits}")) as first:
        first.await_records(1)
        second = launch(tmp_path, *words, probe(tmp_path, name="other.py"))
        (tmp_path / "go").touch()
        done = first.finish()

    assert (second.status, done.status) == (0, 0), second.err + done.err
    assert {record["WORLD_SIZE"] for record in (*second.records, *done.records)} == {"1"}
    assert len({record["MASTER_PORT"] for record in (*second.records, *done.records)}) == 2


def test_an_endpoint_for_our_own_backend(tmp_path: Path) -> None:
    """--rdzv-endpoint pins where the agents meet; MASTER_PORT stays apart from it."""
    port = str(free_port())
    done = launch(tmp_path, "--rdzv-backend", "slurm", "--rdzv-endpoint", f"127.0.0.1:{port}", probe(tmp_path))
    assert (done.status, len(done.records)) == (0, 1), done.err
    assert port != done.records[0]["MASTER_PORT"]
