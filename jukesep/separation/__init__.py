"""Mixture to stems: exact in chunks, refined, from files to files, models as files."""
