"""Separation: models run over songs in exact chunks, refinements, files in and out."""
