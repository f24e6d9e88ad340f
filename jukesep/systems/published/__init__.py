"""Systems with weights that others have published."""
