"""CLaRa on a Ray cluster: compression, joint training, retrieval and generation in one latent space."""

__version__ = "0.1.0"
