"""The messages of the rendezvous: what agents tell each other, as typed values. Pure.

Each message is a frozen dataclass; the codec writes it and checks every field (`fields`) of what arrives. `hello` has
those of the handshake, `from_agents` and `from_coordinator` the others, and `run_state`, `round_plan` and `round_end`
what several of them carry.
"""

from hpc_launch.rendezvous.messages.field_checks import MOST_SHARED, one_line, places
from hpc_launch.rendezvous.messages.from_agents import (
    FROM_AGENTS,
    Accept,
    Ask,
    Begun,
    Bye,
    Done,
    Failed,
    Notice,
    Pong,
    Question,
    Ready,
    Share,
    Stop,
)
from hpc_launch.rendezvous.messages.from_coordinator import (
    FROM_COORDINATOR,
    AllBegun,
    Ended,
    Notices,
    Ping,
    Places,
    Propose,
    RefusalKind,
    Refused,
    Start,
    Told,
    Waiting,
)
from hpc_launch.rendezvous.messages.hello import Answer, Hello, Purpose, Verdict, fitting, shown_words
from hpc_launch.rendezvous.messages.message import Message, decode
from hpc_launch.rendezvous.messages.round_end import RoundEnd, RoundEnding
from hpc_launch.rendezvous.messages.round_plan import RoundPlan
from hpc_launch.rendezvous.messages.run_state import RunState, merge

__all__ = [
    "FROM_AGENTS",
    "FROM_COORDINATOR",
    "MOST_SHARED",
    "Accept",
    "AllBegun",
    "Answer",
    "Ask",
    "Begun",
    "Bye",
    "Done",
    "Ended",
    "Failed",
    "Hello",
    "Message",
    "Notice",
    "Notices",
    "Ping",
    "Places",
    "Pong",
    "Propose",
    "Purpose",
    "Question",
    "Ready",
    "RefusalKind",
    "Refused",
    "RoundEnd",
    "RoundEnding",
    "RoundPlan",
    "RunState",
    "Share",
    "Start",
    "Stop",
    "Told",
    "Verdict",
    "Waiting",
    "decode",
    "fitting",
    "merge",
    "one_line",
    "places",
    "shown_words",
]
