"""The training loop and what it optimises. Everything here determines a training's result."""
