"""How likely images are under a model: ELBO, importance sampling, annealing, and how the latents are used."""
