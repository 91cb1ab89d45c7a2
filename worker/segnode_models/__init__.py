"""The model process: torch, the weights, and nothing else."""
