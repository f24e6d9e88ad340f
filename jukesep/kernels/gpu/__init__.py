"""The model's layers and codebook on an NVIDIA GPU, as Triton kernels."""
