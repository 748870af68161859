"""Many runs: compare them, sweep over settings, reproduce published results."""
