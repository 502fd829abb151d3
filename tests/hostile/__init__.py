"""What another ordinary user of a cluster can do to a run: an attacker, and what it reports.

`python -m tests.hostile strangers` connects to the agents of a run; `python -m tests.hostile listeners` listens where
agents look for their leader. Both import what they need as root, and become another user before they touch anything.
"""
