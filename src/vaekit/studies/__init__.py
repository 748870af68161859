"""Studies of many runs: comparison tables and curves, sweeps, reproductions of published results."""
