"""The interactive page of `vaekit explore RUN`: server, session of a run, maps of the latent space."""
