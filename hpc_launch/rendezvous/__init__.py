"""The rendezvous: how the agents of a run find each other, prove themselves and agree. Nothing here imports torch."""
