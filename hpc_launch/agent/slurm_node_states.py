"""The health of lost nodes, as Slurm says: evidence for people, and no proof of anything (docs/design.md).

The leader asks, in a thread: at once, and where Slurm does not know yet that a node is gone, once more when it must
have noticed. Whoever does not answer is not waited for.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hpc_launch import codec
from hpc_launch.console import say
from hpc_launch.records import events, failure_messages, formatting
from hpc_launch.records.history_model import NodeState
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.slurm import controller
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.nodes import NodeRecord

# When it is asked again, in terms of SlurmdTimeout: with one of 20 s it took 1.5 of it until a node was down.
_AGAIN, _MORE_SECONDS = (1.0, 1.5), 10.0


class SlurmNodeStates:
    """Asks about nodes that were lost, and says what it hears.

    Args:
        heard: is told what was heard.
        wanted: says whether it is still asked from here.
        ask: asks about nodes.
        ask_rules: asks by what rules Slurm takes a node for down.
    """

    def __init__(
        self,
        heard: Callable[[NodeState], object],
        wanted: Callable[[], bool] = lambda: True,
        ask: Callable[[Sequence[str]], tuple[NodeRecord, ...] | None] = controller.ask_node_records,
        ask_rules: Callable[[], ClusterRules | None] = controller.ask_rules,
    ) -> None:
        self._heard, self._wanted = heard, wanted
        self._ask, self._ask_rules = ask, ask_rules
        self._changed = threading.Condition()
        # When each node was lost, and when to ask about it (all time.time).
        self._lost: dict[str, float] = {}
        self._due: dict[str, list[float]] = {}
        self._rules: ClusterRules | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def note(self, event: str, facts: Mapping[str, Any]) -> None:
        """Something was said about nodes, by whoever leads."""
        named = {name: formatting.unfold_hosts(str(facts.get(name, ""))) for name in ("hosts", "spares", "lost")}
        if event in (events.NODE_LOST, events.NODES):
            self.lost(named["hosts"] if event == events.NODE_LOST else named["lost"])
        if event in (events.NODE_BACK, events.NODES):
            self.there(named["hosts"] + named["spares"])

    def lost(self, hosts: Iterable[str]) -> None:
        """Nodes were lost: ask about them."""
        now = time.time()
        with self._changed:
            for host in hosts:
                if host not in self._lost:
                    self._lost[host], self._due[host] = now, [now]
            if self._due and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="slurm-view", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def there(self, hosts: Iterable[str]) -> None:
        """Nodes are there, perhaps again: nothing more need be known of them."""
        with self._changed:
            for host in hosts:
                self._lost.pop(host, None)
                self._due.pop(host, None)

    def close(self) -> None:
        """Ask no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while hosts := self._await_due():
            if not self._wanted():
                self.there(hosts)  # somebody else asks
                continue
            records = {record.name: record for record in self._ask(hosts) or ()}
            self._rules = self._rules or self._ask_rules()
            for host in hosts:
                self._note(host, records.get(host), (self._rules or ClusterRules()).slurmd_timeout)

    def _await_due(self) -> list[str]:
        """Wait until there is something to ask; nothing when nobody wants to know any more."""
        with self._changed:
            while not self._closed:
                now = time.time()
                hosts = [host for host, due in self._due.items() if due[0] <= now]
                if hosts:
                    return hosts
                self._changed.wait(min(due[0] for due in self._due.values()) - now if self._due else None)
            return []

    def _note(self, host: str, record: NodeRecord | None, timeout: float) -> None:
        now = time.time()
        with self._changed:
            if host not in self._due or self._closed:
                return  # it has come back
            lost, asked = self._lost[host], self._due.pop(host)
            if asked[0] == lost and math.isfinite(timeout):
                asked += [lost + timeout * part + _MORE_SECONDS for part in _AGAIN]
            if asked[1:] and not (record is not None and record.gone):
                self._due[host] = asked[1:]
            last = host not in self._due
        if record is not None:
            said = NodeState(
                time=now,
                host=host,
                state=record.state,
                gone=record.gone,
                reason=record.reason,
                since=record.since,
                booted=record.booted,
                waited=now - lost,
                last=last,
            )
            self._heard(said)
            if last:
                say(f"{host}: {failure_messages.slurms_word(said)}")


def follow(handler: SlurmRendezvous) -> SlurmNodeStates:
    """Ask about the nodes that a run loses, as long as its leader is here, and write down what is heard."""
    observe = handler.observer
    view = SlurmNodeStates(
        lambda said: observe(events.NODE_STATE, **codec.plain(dataclasses.replace(said, waited=round(said.waited, 1)))),
        lambda: handler.leads,
    )

    def note(event: str, **facts: Any) -> None:
        observe(event, **facts)
        if handler.leads:
            view.note(event, facts)

    handler.observer = note
    return view
