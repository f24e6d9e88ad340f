"""The one training loop, and what it optimises. All here decides a training's result."""
