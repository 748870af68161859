"""What a trained model does for you: generate, reconstruct, encode, decode, walk the latent space, export."""
