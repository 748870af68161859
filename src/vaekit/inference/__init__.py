"""Use of a trained model: generate, reconstruct, encode, decode, explore the latent space, export."""
