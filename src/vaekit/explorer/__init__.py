"""A page in the browser on which runs are explored: `vaekit explore RUN`."""
