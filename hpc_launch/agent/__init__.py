"""The agent of a node: it runs torch's elastic agent over our rendezvous and our workers, and keeps the records.

- `agent_run`: runs a plan: makes the rendezvous and the agent, and turns how they end into an error
- `agent`: torch's agent, with its seams overridden: what is done when; `round_supervisor`: one round, from start to end
- `run_context`: the plan, the current attempt and the job directory; `worker_pool`: the workers of each attempt
- `output`, `output_console`, `disk_monitor`: where workers write, what the console shows, and whether there is room;
  `traceback_folding`: tracebacks of several ranks that are alike
- `recorder`, `failure_evidence`, `environment_snapshot`: what is written down
- `failure_report`: the root cause of a run that failed; `failure_streak`: the same failure in attempts in a row;
  `log_messages`: the launcher's lines on the console
- `hang_detector`: whether the job hangs
- `job_monitor`, `job_facts`, `slurm_node_states`, `job_requeue`: what Slurm says of job and nodes, and what is asked of
  it
- `peers`: the other agents; `foreign_backends`: runs under torch's own rendezvous
- `torch_adapter`: torch's words for a plan
"""
