"""Authenticated connections between agents: secrets, handshake, frames, and the thread that serves a listener.

The room knows neither runs nor rounds: what agents say to each other is opaque bytes here. It needs the standard
library only, and works before torch and click are imported.
"""
