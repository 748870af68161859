"""Measuring a trained model: `evaluate` and the metrics it computes."""
