"""What stages/ calls: the experiment put together from its parameters."""
