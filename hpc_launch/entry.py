"""The entry of the console script. Signals that would end it are held back before anything else is imported."""

from hpc_launch import held_signals

held_signals.hold()

from hpc_launch.cli import main  # noqa: E402 - that takes its time

__all__ = ["main"]
