"""Common to all tests."""

import torch

# The tests' models are so small that a second thread costs more than it brings.
torch.set_num_threads(1)
