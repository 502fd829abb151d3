"""What one node is: its devices, CPUs, addresses, ports, processes and mounts."""
