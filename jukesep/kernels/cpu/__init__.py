"""The model's layers, codebook search and spectral loss on a CPU, compiled by numba."""
