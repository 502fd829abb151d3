"""What one node is: its devices, CPUs, addresses and ports."""
