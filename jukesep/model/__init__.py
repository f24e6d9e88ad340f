"""Jukebox's VQ-VAE, its codebook and its checkpoint files."""
