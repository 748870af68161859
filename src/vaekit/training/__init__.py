"""Training a model in its run directory: loop, step, checkpoints, recovery, monitoring."""
