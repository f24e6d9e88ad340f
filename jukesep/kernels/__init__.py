"""Fast paths of the model's layers, codebook and losses, and the devices that they run on."""
