"""The rendezvous: how the agents of a run find each other, prove who they are, and agree on rounds.

An agent:

- `handler`: torch's RendezvousHandler of the `slurm` backend, one for all runs; `torchrun_plugin`: by which plain
  torchrun finds it; `rendezvous_config`: what it needs to know
- `follower`: hears the coordinator, and notices its loss; `agent_state`: what an agent knows of the run
- `coordinator_client`: the connection to the coordinator, and questions to it; `clock_offset`: measured by these
- `coordinator_search`: how the coordinator is found; `discovery`: the first one; `election`: another one
- `known_agents`: where the others are, and whom they follow; `failure_detector`: who is silent

The coordinator:

- `coordinator`: who is let in, what messages are for; `coordinator_interface`: what it has done;
  `coordinator_service`: does it, in the thread of the `coordinator_server`
- `admission`: which agents belong to the run; `sessions`: which are there; `shared_values`: what they share
- `rounds`: forms, begins and ends rounds; `round_formation`, `running_round`: a round before and after it has begun
- `membership`: who may go on without whom; `join_policy`: when a round begins; `tie_breaker`: which of two halves may
- `round_checks`: who does not fit together; `node_blame`: whose node is bad; `node_reports`: what is said about nodes
- `preparations`: made in threads, `job_claim` and `worker_store`

Both: `messages`: what agents say, checked; `transport`: authenticated connections; `suspend_aware_clock`,
`background_call`: time, and work that may block.
"""
