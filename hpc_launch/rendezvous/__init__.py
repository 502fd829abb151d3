"""The rendezvous: how the agents of a run find each other, prove who they are, and agree on rounds.

- `handler`: torch's RendezvousHandler of the `slurm` backend, one for all runs
- `rendezvous_config`: what it needs to know; `torchrun_plugin`: by which plain torchrun finds it
- `discovery`: finds the coordinator; `admission`: who is let in; `election`: who coordinates when it is lost
- `coordinator`: begins and ends rounds, pure; `effects`: what it has done; `coordinator_server`: does it
- `membership`: who may go on without whom; `join_policy`: when a round begins
- `tie_breaker`: which of two halves goes on
- `failure_detector`: who is silent; `node_blame`: whose node is bad; `round_checks`: who does not fit together
- `messages`, `codec`: what agents say, checked; `transport`: authenticated connections
- `job_claim`, `worker_store`: what the first node prepares
- `suspend_aware_clock`, `background_call`: time, and work that may block
"""
