"""The graph of a VAE: distributions, priors, networks, objectives, and how settings become a model."""
