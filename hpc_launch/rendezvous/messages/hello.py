"""The handshake's messages: an agent's hello, and the answer of the agent that it connects to. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from hpc_launch import codec
from hpc_launch.codec import array, checked, integer, table, text
from hpc_launch.rendezvous.messages.field_checks import AGENT, HOST, MOST_AGENTS, PORT, ROUND
from hpc_launch.rendezvous.transport import framing

# As much of a command is for messages.
_LONGEST_WORDS = 200


class Purpose(str, Enum):
    """What an agent wants of the one that it connects to."""

    JOIN = "join"
    """Take part, if that one coordinates; the connection stays."""
    ASK = "ask"
    """Hear who coordinates; the connection stays if that one does."""
    CALL = "call"
    """See that it answers, because its word has been due for long."""


@dataclass(frozen=True)
class Hello:
    """What the connecting agent says of itself in the handshake.

    Attributes:
        purpose: what it wants.
        agent: its number.
        host: its node.
        instance: tells this process from another one with the same number.
        program: the key of its program (`plan.identity`): only equal ones meet.
        words: the command as people read it.
        digests: of the command's words (`plan.similar_commands`).
        texts: those of the words that hold a value of the agent's task.
        task: these values.
    """

    purpose: Purpose
    agent: int = checked(AGENT)
    host: str = checked(HOST)
    instance: str = checked(text(64))
    program: str = checked(text(128))
    words: str = checked(text(400), "")
    digests: Sequence[str] = checked(array(text(16), 256), ())
    texts: Mapping[str, str] = field(default_factory=dict, metadata={"check": table(text(4), text(200), 64)})
    task: Sequence[str] = checked(array(text(256), 8), ())


def shown_words(words: str) -> str:
    """As much of a command as people read it in hellos and answers."""
    return words[:_LONGEST_WORDS]


def fitting(hello: Hello) -> Hello:
    """A hello that fits into the handshake: where the command is too long for it, its digest alone is sent."""
    if len(codec.encode(hello)) <= framing.MAX_HELLO:
        return hello
    return replace(hello, words="", digests=(), texts={}, task=())


class Verdict(str, Enum):
    """How an agent answers another one's hello."""

    WELCOME = "welcome"
    """It coordinates this run: the connection stays."""
    FOLLOWS = "follows"
    """It is of this run, and does not coordinate it."""
    SIMILAR = "similar"
    """Its command differs by the task's own numbers only: it is welcome if no other run shows up in a moment."""
    OTHER_PROGRAM = "other program"
    """It is of another run: the program or its arguments differ."""
    TAKEN = "taken"
    """An agent with this number is there already: there are two runs of the same program."""


@dataclass(frozen=True)
class Answer:
    """What the listening agent says in the handshake.

    Attributes:
        verdict: how it takes the hello.
        agent: its number.
        host: its node.
        instance: tells this process from another one with the same number.
        coordinator: the agent that it follows, itself if it coordinates; -1 while it looks for one.
        number: of the membership whose round it coordinates; -1 where none has begun.
        port: where it listens.
        words: its command, where that is another one.
    """

    verdict: Verdict
    agent: int = checked(AGENT)
    host: str = checked(HOST)
    instance: str = checked(text(64))
    coordinator: int = checked(integer(-1, MOST_AGENTS - 1), -1)
    number: int = checked(ROUND, -1)
    port: int = checked(PORT, 0)
    words: str = checked(text(400), "")
