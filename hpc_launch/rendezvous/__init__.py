"""How the agents of a run meet, and what they say to each other."""
