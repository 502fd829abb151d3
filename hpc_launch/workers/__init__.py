"""The processes that train: how they are made, signalled and ended.

- `factory`: the agent's side of the worker factory, which imports torch once; `factory_server`: the process that forks;
  `factory_channel`: what both say to each other
- `forked_child`, `script`: a forked process becomes a worker, and then the training script
- `run_path`: what a worker runs for `--run-path`
- `exception_file`, `stack_answers`: what a worker leaves when it fails, and answers when it is asked where it is
- `command_workers`: the workers of one attempt; `worker_environment`: the variables of each
- `signals`, `notice_signals`: what the agent was told, and what is passed on
- `grace_period`: how long workers may take to end

The factory and what is forked from it know no torch: what is imported is a parameter.
"""
