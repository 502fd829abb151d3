"""Everything that uses torch: the agent, the rendezvous, the workers. Nothing else in the package imports it."""
