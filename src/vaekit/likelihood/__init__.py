"""The likelihood of images: ELBO, importance sampling, annealing, aggregate posterior, use of the latents, clusters."""
